//! The streams and their columns.

use serde_json::Value;

use super::BUCKETS;
use crate::domain::spec::ColumnType::{Bigint, Cents, Text, TextArray, Timestamptz};
use crate::domain::spec::{Changes, Column, Fact, ListSpec, Mode, Paging, Read, StreamSpec, col};

pub(super) const LOCATIONS_NAME: &str = "locations";
pub(super) const JOBS_NAME: &str = "jobs";
pub(super) const CUSTOMERS_NAME: &str = "customers";
/// Those whose walks over changes would not find what is new by its place alone.
pub(super) const LOCATED: &[&str] = &[JOBS_NAME, CUSTOMERS_NAME];
const EMPLOYEES_NAME: &str = "employees";
/// What is kept of an employee, in their own records and within jobs. The rest is between them and their company.
const KEPT_OF_EMPLOYEES: &[&str] =
    &["id", "first_name", "last_name", "company_id", "created_at", "updated_at"];
/// The fact that the stream of locations learns.
pub(super) const LOCATIONS_FACT: &str = "locations";
const NEEDED: &[Fact] = &[Fact { name: LOCATIONS_FACT, taught_by: LOCATIONS_NAME }];

/// `{"page": 1, "page_size": 200, "total_pages": 7, "total_items": 1311, …}`
const PAGING: Paging = Paging::Numbered { param: "page", more: "/total_pages", total: "/total_items" };
/// There is no filter on the time of modification, but an order by it. Everything is read in an order that edits do not
/// disturb: jobs in that of their ids, which none shares with another; for customers no such order is documented.
const JOB_CHANGES: Changes = Changes::NewestFirst {
    newest: NEWEST,
    full: &[("sort_by", "id"), ("sort_direction", "asc")],
    full_is_unique: true,
};
const CUSTOMER_CHANGES: Changes = Changes::NewestFirst {
    newest: NEWEST,
    full: &[("sort_by", "created_at"), ("sort_direction", "asc")],
    full_is_unique: false,
};
const NEWEST: &[(&str, &str)] = &[("sort_by", "updated_at"), ("sort_direction", "desc")];

/// A list at `path`, which is also the name of its records in the envelope.
const fn list(path: &'static str, query: &'static [(&'static str, &'static str)], changes: Changes) -> Read {
    Read::List(ListSpec {
        path,
        records: path,
        query,
        paging: PAGING,
        size: "page_size",
        changes,
        buckets: BUCKETS,
    })
}

pub(super) const JOBS: StreamSpec = StreamSpec {
    name: JOBS_NAME,
    table: "housecallpro_jobs",
    modes: &[Mode::Backfill, Mode::Incremental, Mode::Sweep],
    needs_facts: NEEDED,
    id: "/id",
    created_at: "/created_at",
    updated_at: "/updated_at",
    columns: JOB_COLUMNS,
    merges: false,
    // Links to attachments are signed, and expire.
    keep_only: &[],
    omit: &["/attachments/*/url"],
    // A name without brackets would keep the last of several values only.
    read: list("/jobs", &[("expand[]", "appointments")], JOB_CHANGES),
};

#[rustfmt::skip]
const JOB_COLUMNS: &[Column] = &[
    col("invoice_number", Text, "/invoice_number"),
    col("description", Text, "/description"),
    col("work_status", Text, "/work_status").one_of(&[
        "needs scheduling", "scheduled", "in progress", "complete rated", "complete unrated", "user canceled", "pro canceled",
    ]),
    col("customer_id", Text, "/customer/id"),
    col("customer_first_name", Text, "/customer/first_name"),
    col("customer_last_name", Text, "/customer/last_name"),
    col("customer_company", Text, "/customer/company"),
    col("street", Text, "/address/street"),
    col("street_line_2", Text, "/address/street_line_2"),
    col("city", Text, "/address/city"),
    col("state", Text, "/address/state"),
    col("zip", Text, "/address/zip"),
    col("country", Text, "/address/country"),
    col("scheduled_start", Timestamptz, "/schedule/scheduled_start"),
    col("scheduled_end", Timestamptz, "/schedule/scheduled_end"),
    col("arrival_window_minutes", Bigint, "/schedule/arrival_window"),
    col("on_my_way_at", Timestamptz, "/work_timestamps/on_my_way_at"),
    col("started_at", Timestamptz, "/work_timestamps/started_at"),
    col("completed_at", Timestamptz, "/work_timestamps/completed_at"),
    col("total_amount", Cents, "/total_amount"),
    col("outstanding_balance", Cents, "/outstanding_balance"),
    col("subtotal", Cents, "/subtotal"),
    col("employee_ids", TextArray, "/assigned_employees/*/id"),
    col("tags", TextArray, "/tags"),
    col("lead_source", Text, "/lead_source"),
    col("job_type", Text, "/job_fields/job_type/name"),
    col("business_unit", Text, "/job_fields/business_unit/name"),
    col("original_estimate_id", Text, "/original_estimate_id"),
    col("recurrence_number", Bigint, "/recurrence_number"),
    col("recurrence_rule", Text, "/recurrence_rule"),
    col("company_id", Text, "/company_id"),
    col("company_name", Text, "/company_name"),
    col("canceled_at", Timestamptz, "/canceled_at"),
    col("source_deleted_at", Timestamptz, "/deleted_at"),
    col("locked_at", Timestamptz, "/locked_at"),
];

pub(super) const CUSTOMERS: StreamSpec = StreamSpec {
    name: CUSTOMERS_NAME,
    table: "housecallpro_customers",
    modes: &[Mode::Backfill, Mode::Incremental, Mode::Sweep],
    needs_facts: NEEDED,
    id: "/id",
    created_at: "/created_at",
    updated_at: "/updated_at",
    columns: &[
        col("first_name", Text, "/first_name"),
        col("last_name", Text, "/last_name"),
        col("company", Text, "/company"),
        col("email", Text, "/email"),
        col("company_id", Text, "/company_id"),
    ],
    merges: false,
    keep_only: &[],
    omit: &["/attachments/*/url"],
    read: list("/customers", &[], CUSTOMER_CHANGES),
};

pub(super) const EMPLOYEES: StreamSpec = StreamSpec {
    name: EMPLOYEES_NAME,
    table: "housecallpro_employees",
    // No change marker, and only active ones are listed: absent means deactivated.
    modes: &[Mode::Snapshot],
    needs_facts: NEEDED,
    id: "/id",
    created_at: "/created_at",
    updated_at: "/updated_at",
    columns: &[
        col("first_name", Text, "/first_name"),
        col("last_name", Text, "/last_name"),
        col("company_id", Text, "/company_id"),
    ],
    merges: false,
    keep_only: KEPT_OF_EMPLOYEES,
    omit: &[],
    read: list("/employees", &[], Changes::None),
};

pub(super) const LOCATIONS: StreamSpec = StreamSpec {
    name: LOCATIONS_NAME,
    table: "housecallpro_locations",
    modes: &[Mode::Snapshot],
    needs_facts: &[],
    id: "/id",
    created_at: "/created_at",
    updated_at: "/updated_at",
    columns: &[col("name", Text, "/name"), col("time_zone", Text, "/time_zone")],
    merges: false,
    keep_only: &[],
    omit: &[],
    read: Read::Own,
};

/// Takes out of a job what the employees who are sent have a right to keep to themselves.
pub(super) fn keep_private(stream: &str, raw: &mut Value) {
    if stream == JOBS_NAME {
        let crew = raw.get_mut("assigned_employees").and_then(Value::as_array_mut);
        crew.into_iter().flatten().for_each(strip);
    }
}

fn strip(employee: &mut Value) {
    if let Some(fields) = employee.as_object_mut() {
        fields.retain(|name, _| KEPT_OF_EMPLOYEES.contains(&name.as_str()));
    }
}
