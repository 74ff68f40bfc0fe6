//! Log lines as JSON: each a flat object, so that a field is found by its own name, whether the line states it or the span
//! around it does. What is nearest to the line counts.

use std::fmt;
use std::io::Write as _;

use chrono::SecondsFormat;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Scope};

use crate::domain::failure::chain;
use crate::domain::time::{Clock as _, SystemClock};

/// Writes every line to what `writer` makes.
pub(super) struct Lines<W> {
    writer: W,
}

impl<W> Lines<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer }
    }
}

/// Fields by name, of a span or a line.
#[derive(Debug, Clone, Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.0.extend(fields.0.clone());
            }
        }
        event.record(&mut line);
        let metadata = event.metadata();
        let now = SystemClock.now().to_rfc3339_opts(SecondsFormat::Micros, true);
        let own = [
            ("timestamp", now.as_str()),
            ("level", metadata.level().as_str()),
            ("target", metadata.target()),
        ];
        line.0.extend(own.map(|(name, value)| (name.to_owned(), value.into())));
        let text = format!("{}\n", Value::Object(line.0));
        // There is nowhere else to tell that the log cannot be written.
        let _ = self.writer.make_writer().write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The objects that `told` logs.
    fn logged(told: impl FnOnce()) -> Vec<Value> {
        let sink = Sink::default();
        let kept = sink.clone();
        let subscriber = tracing_subscriber::registry().with(Lines::new(move || sink.clone()));
        tracing::subscriber::with_default(subscriber, told);
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect("an object for each line")).collect()
    }

    #[test]
    fn a_line_is_one_flat_object() {
        let lines = logged(|| {
            let job = tracing::info_span!("job", job.id = %7, job.kind = "sync", connection.id = 3, late = tracing::field::Empty);
            job.record("late", true);
            let _within = job.enter();
            let none: Option<&str> = None;
            tracing::warn!(
                connection.id = 4,
                rows = 2_u64,
                part = 0.5,
                error = none,
                "Two\nlines, \"quoted\""
            );
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let mut line = line.as_object().unwrap().clone();
        let time = line.remove("timestamp").unwrap();
        assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
        assert_eq!(
            Value::Object(line),
            json!({
                "level": "WARN", "target": module_path!(), "message": "Two\nlines, \"quoted\"", "job.id": "7",
                "job.kind": "sync", "connection.id": 4, "late": true, "rows": 2, "part": 0.5
            })
        );
    }

    #[test]
    fn a_panic_is_a_line() {
        let before = std::panic::take_hook();
        crate::daemon::telemetry::panics::log();
        let lines = logged(|| {
            let job = tracing::info_span!("job", job.id = %7);
            let _within = job.enter();
            std::panic::catch_unwind(|| panic!("no {}, token=hunter2hunter2", "luck"))
                .expect_err("it panics");
        });
        std::panic::set_hook(before);
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!((&line["level"], &line["job.id"]), (&json!("ERROR"), &json!("7")), "{line}");
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        assert!(text("error").starts_with("no luck, ") && text("message").contains("no luck, "), "{line}");
        assert!(text("panic.location").starts_with("src/daemon/telemetry/json.rs:"), "{line}");
        assert!(!line.to_string().contains("hunter2"), "{line}");
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let cause = std::io::Error::other("no route");
        let error = crate::daemon::StartError::Listen {
            address: ([127, 0, 0, 1], 1).into(),
            key: "a.b",
            source: cause,
        };
        let error: &(dyn std::error::Error + 'static) = &error;
        let lines = logged(|| tracing::error!(error, "It did not start"));
        assert_eq!(lines[0]["error"], "listening on 127.0.0.1:1, the setting `a.b`: no route");
    }
}
