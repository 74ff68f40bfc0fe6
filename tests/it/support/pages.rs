//! Where providers put records in what they answer.

use serde_json::Value;

const PLACES: [&str; 9] = [
    "/results",
    "/jobs",
    "/customers",
    "/employees",
    "/data/jobs/nodes",
    "/data/visits/nodes",
    "/data/clients/nodes",
    "/data/created/nodes",
    "/data",
];

/// The first list of records of an answer.
pub fn list(body: &mut Value) -> Option<&mut Vec<Value>> {
    let place = PLACES.into_iter().find(|place| body.pointer(place).is_some_and(Value::is_array))?;
    body.pointer_mut(place)?.as_array_mut()
}

/// Every record of an answer. A company comes with the locations below it, a pipeline with its stages: each of these is a
/// record, and the list of them is none's field. What tells who belongs to whom is no record.
pub fn each_record(body: &mut Value, visit: &mut dyn FnMut(&mut Value)) {
    for place in PLACES {
        let list = body.pointer_mut(place).and_then(Value::as_array_mut);
        for record in list.into_iter().flatten().filter(|record| record.get("from").is_none()) {
            with_parts(record, "stages", visit);
        }
    }
    if body.get("locations").is_some_and(Value::is_array) {
        with_parts(body, "locations", visit);
    }
}

fn with_parts(record: &mut Value, name: &str, visit: &mut dyn FnMut(&mut Value)) {
    let parts = match record.get_mut(name) {
        Some(Value::Array(parts)) => Some(std::mem::take(parts)),
        _ => None,
    };
    let Some(mut parts) = parts else { return visit(record) };
    let fields = record.as_object_mut().expect("it has a field");
    fields.remove(name);
    visit(record);
    parts.iter_mut().for_each(visit);
    record[name] = parts.into();
}
