-- Which limit the pause of a stream (`not_before`) waits for, in words.
ALTER TABLE fieldmirror.stream_state ADD COLUMN waits_for text;
