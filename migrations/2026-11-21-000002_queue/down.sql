DROP TABLE fieldmirror.jobs;
