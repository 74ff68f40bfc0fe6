//! What is mirrored: the feeds of records that change every minute, and three short lists that they refer to.

use crate::domain::spec::ColumnType::{Bigint, Boolean, Numeric, Text, TextArray, Timestamptz};
use crate::domain::spec::{Changes, Column, ListSpec, Mode, Paging, Read, StreamSpec, col};

use super::BUCKETS;

/// Where a feed is, and what is there beside it.
pub struct Feed {
    pub stream: &'static str,
    pub module: &'static str,
    pub path: &'static str,
    /// Whether there is a list of the same records, and whether it knows `active`.
    pub has_list: bool,
    pub lists_active: bool,
}

/// The parameter that says how many records a page of a list is to have.
pub const PAGE_SIZE: &str = "pageSize";
/// The most that a page has. A list that cuts larger ones does not say so: places in it would be reckoned wrongly.
pub const PAGE_SIZE_MAX: u32 = 5_000;
pub const BOOKINGS_SCOPE: &str = "tn.crm.bookings:r";

/// Streams and the scopes that they need.
const SCOPES: &[(&str, &str)] = &[
    ("jobs", "tn.jpm.jobs:r"),
    ("bookings", BOOKINGS_SCOPE),
    ("appointments", "tn.jpm.appointments:r"),
    ("appointment_assignments", "tn.dis.appointmentassignments:r"),
    ("job_canceled_logs", "tn.jpm.jobcanceledlogs:r"),
    ("customers", "tn.crm.customers:r"),
    ("locations", "tn.crm.locations:r"),
    ("technicians", "tn.stt.technicians:r"),
    ("business_units", "tn.stt.businessunits:r"),
    ("job_types", "tn.jpm.jobtypes:r"),
];

const FEEDS: &[Feed] = &[
    Feed { stream: "jobs", module: "jpm", path: "jobs", has_list: true, lists_active: false },
    Feed { stream: "bookings", module: "crm", path: "bookings", has_list: true, lists_active: false },
    Feed { stream: "appointments", module: "jpm", path: "appointments", has_list: true, lists_active: true },
    Feed {
        stream: "appointment_assignments",
        module: "dispatch",
        path: "appointment-assignments",
        has_list: true,
        lists_active: true,
    },
    Feed {
        stream: "job_canceled_logs",
        module: "jpm",
        path: "job-canceled-logs",
        has_list: false,
        lists_active: false,
    },
    Feed { stream: "customers", module: "crm", path: "customers", has_list: true, lists_active: true },
    Feed { stream: "locations", module: "crm", path: "locations", has_list: true, lists_active: true },
];

pub fn feed(stream: &str) -> Option<&'static Feed> {
    FEEDS.iter().find(|feed| feed.stream == stream)
}

pub fn scope(stream: &str) -> Option<&'static str> {
    SCOPES.iter().find(|(name, _)| *name == stream).map(|(_, scope)| *scope)
}

const fn exported(name: &'static str, table: &'static str, columns: &'static [Column]) -> StreamSpec {
    StreamSpec {
        name,
        table,
        modes: &[Mode::Backfill, Mode::Incremental, Mode::Sweep],
        needs_facts: &[],
        id: "/id",
        created_at: "/createdOn",
        updated_at: "/modifiedOn",
        columns,
        merges: false,
        keep_only: &[],
        omit: &[],
        read: Read::Own,
    }
}

/// Short lists are read whole: what has left them is gone.
const fn listed(
    name: &'static str,
    table: &'static str,
    path: &'static str,
    columns: &'static [Column],
) -> StreamSpec {
    let list = ListSpec {
        path,
        records: "/data",
        query: &[("active", "Any")],
        paging: Paging::Numbered { param: "page", more: "/hasMore", total: "" },
        size: PAGE_SIZE,
        changes: Changes::None,
        buckets: BUCKETS,
    };
    StreamSpec { modes: &[Mode::Snapshot], read: Read::List(list), ..exported(name, table, columns) }
}

pub const BOOKINGS: StreamSpec = exported("bookings", "servicetitan_bookings", BOOKING_COLUMNS);

pub const ALL: &[StreamSpec] = &[
    exported("jobs", "servicetitan_jobs", JOBS),
    BOOKINGS,
    exported("appointments", "servicetitan_appointments", APPOINTMENTS),
    exported("appointment_assignments", "servicetitan_appointment_assignments", ASSIGNMENTS),
    // An entry of the log is written once: it has no time of modification.
    StreamSpec {
        updated_at: "/createdOn",
        ..exported("job_canceled_logs", "servicetitan_job_canceled_logs", CANCELED_LOGS)
    },
    exported("customers", "servicetitan_customers", CUSTOMERS),
    exported("locations", "servicetitan_locations", LOCATIONS),
    StreamSpec {
        keep_only: KEPT_OF_TECHNICIANS,
        omit: PERSONAL,
        ..listed(
            "technicians",
            "servicetitan_technicians",
            "/settings/v2/tenant/{tenant_id}/technicians",
            TECHNICIANS,
        )
    },
    listed(
        "business_units",
        "servicetitan_business_units",
        "/settings/v2/tenant/{tenant_id}/business-units",
        BUSINESS_UNITS,
    ),
    listed("job_types", "servicetitan_job_types", "/jpm/v2/tenant/{tenant_id}/job-types", JOB_TYPES),
];

/// What is kept of a technician. Much else is pay, or where they live and are, and there are new fields every month: what
/// nobody has looked at is not kept.
const KEPT_OF_TECHNICIANS: &[&str] = &[
    "id",
    "userId",
    "name",
    "roleIds",
    "businessUnitId",
    "email",
    "phoneNumber",
    "loginName",
    "team",
    "active",
    "createdOn",
    "modifiedOn",
];

/// What is known of the rest and is no news: pay and what it is reckoned by, home, notes, and where they are and what they do right now.
const PERSONAL: &[&str] = &[
    "/hourlyRate",
    "/burdenRate",
    "/commissionRate",
    "/soldByRate",
    "/dailyGoal",
    "/currentValue",
    "/payrollId",
    "/payrollProfileId",
    "/home",
    "/memo",
    "/location",
    "/status",
    "/jobId",
    "/appoitmentId",
];

const JOBS: &[Column] = &[
    col("job_number", Text, "/jobNumber"),
    col("status", Text, "/jobStatus").one_of(&[
        "Scheduled",
        "Dispatched",
        "InProgress",
        "Hold",
        "Completed",
        "Canceled",
    ]),
    col("priority", Text, "/priority"),
    col("summary", Text, "/summary"),
    col("customer_id", Text, "/customerId"),
    col("location_id", Text, "/locationId"),
    col("business_unit_id", Text, "/businessUnitId"),
    col("job_type_id", Text, "/jobTypeId"),
    col("campaign_id", Text, "/campaignId"),
    col("project_id", Text, "/projectId"),
    col("booking_id", Text, "/bookingId"),
    col("invoice_id", Text, "/invoiceId"),
    col("recall_for_id", Text, "/recallForId"),
    col("sold_by_id", Text, "/soldById"),
    col("created_by_id", Text, "/createdById"),
    col("appointment_count", Bigint, "/appointmentCount"),
    col("first_appointment_id", Text, "/firstAppointmentId"),
    col("last_appointment_id", Text, "/lastAppointmentId"),
    col("completed_at", Timestamptz, "/completedOn"),
    col("total", Numeric, "/total"),
    col("no_charge", Boolean, "/noCharge"),
    col("customer_po", Text, "/customerPo"),
    col("tag_type_ids", TextArray, "/tagTypeIds"),
    col("active", Boolean, "/active"),
];

const BOOKING_COLUMNS: &[Column] = &[
    col("source", Text, "/source"),
    col("name", Text, "/name"),
    col("status", Text, "/status").one_of(&["New", "Accepted", "Converted", "Dismissed"]),
    col("summary", Text, "/summary"),
    col("starts_at", Timestamptz, "/start"),
    col("customer_type", Text, "/customerType"),
    col("street", Text, "/address/street"),
    col("unit", Text, "/address/unit"),
    col("city", Text, "/address/city"),
    col("state", Text, "/address/state"),
    col("zip", Text, "/address/zip"),
    col("country", Text, "/address/country"),
    col("is_first_time_client", Boolean, "/isFirstTimeClient"),
    col("business_unit_id", Text, "/businessUnitId"),
    col("job_type_id", Text, "/jobTypeId"),
    col("campaign_id", Text, "/campaignId"),
    col("priority", Text, "/priority"),
    col("dismissing_reason_id", Text, "/dismissingReasonId"),
    col("job_id", Text, "/jobId"),
    col("external_id", Text, "/externalId"),
    col("booking_provider_id", Text, "/bookingProviderId"),
    col("active", Boolean, "/active"),
];

const APPOINTMENTS: &[Column] = &[
    col("job_id", Text, "/jobId"),
    col("number", Text, "/appointmentNumber"),
    col("status", Text, "/status").one_of(&[
        "Scheduled",
        "Dispatched",
        "Working",
        "Hold",
        "Done",
        "Canceled",
    ]),
    col("starts_at", Timestamptz, "/start"),
    col("ends_at", Timestamptz, "/end"),
    col("arrival_window_start", Timestamptz, "/arrivalWindowStart"),
    col("arrival_window_end", Timestamptz, "/arrivalWindowEnd"),
    col("customer_id", Text, "/customerId"),
    col("is_confirmed", Boolean, "/isConfirmed"),
    col("active", Boolean, "/active"),
];

const ASSIGNMENTS: &[Column] = &[
    col("job_id", Text, "/jobId"),
    col("appointment_id", Text, "/appointmentId"),
    col("technician_id", Text, "/technicianId"),
    col("technician_name", Text, "/technicianName"),
    col("status", Text, "/status").one_of(&["Scheduled", "Dispatched", "Working", "Done"]),
    col("assigned_at", Timestamptz, "/assignedOn"),
    col("is_paused", Boolean, "/isPaused"),
    col("active", Boolean, "/active"),
];

const CANCELED_LOGS: &[Column] = &[
    col("job_id", Text, "/jobId"),
    col("reason_id", Text, "/reasonId"),
    col("memo", Text, "/memo"),
    col("created_by_id", Text, "/createdById"),
    col("active", Boolean, "/active"),
];

const CUSTOMERS: &[Column] = &[
    col("name", Text, "/name"),
    col("type", Text, "/type"),
    col("balance", Numeric, "/balance"),
    col("merged_to_id", Text, "/mergedToId"),
    col("active", Boolean, "/active"),
];

const LOCATIONS: &[Column] = &[
    col("customer_id", Text, "/customerId"),
    col("name", Text, "/name"),
    col("street", Text, "/address/street"),
    col("unit", Text, "/address/unit"),
    col("city", Text, "/address/city"),
    col("state", Text, "/address/state"),
    col("zip", Text, "/address/zip"),
    col("country", Text, "/address/country"),
    col("merged_to_id", Text, "/mergedToId"),
    col("active", Boolean, "/active"),
];

const TECHNICIANS: &[Column] = &[
    col("name", Text, "/name"),
    col("user_id", Text, "/userId"),
    col("email", Text, "/email"),
    col("business_unit_id", Text, "/businessUnitId"),
    col("team", Text, "/team"),
    col("active", Boolean, "/active"),
];

const BUSINESS_UNITS: &[Column] = &[
    col("name", Text, "/name"),
    col("official_name", Text, "/officialName"),
    col("trade", Text, "/trade/name"),
    col("division", Text, "/division/name"),
    col("currency", Text, "/currency"),
    col("active", Boolean, "/active"),
];

const JOB_TYPES: &[Column] = &[col("name", Text, "/name"), col("active", Boolean, "/active")];
