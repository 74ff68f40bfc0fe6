//! The kinds of record that are served: where each is found, which scope it asks for, and how its feed ends.

/// A kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Jobs,
    JobCanceledLogs,
    Appointments,
    JobTypes,
    Bookings,
    Customers,
    Locations,
    AppointmentAssignments,
    Technicians,
    BusinessUnits,
}

/// What a feed says in `continueFrom` when it is at its end. The documents disagree with what is in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    New,
    Unchanged,
    Null,
    Missing,
    Empty,
}

/// How a kind is served.
pub struct Served {
    pub kind: Kind,
    pub module: &'static str,
    pub path: &'static str,
    pub scope: &'static str,
    /// The words under which its list and its feed are counted; empty where there is none.
    pub list: &'static str,
    pub feed: &'static str,
    pub ending: Ending,
    /// Whether the list knows `active`, as a field and as a parameter. The feed's rows have the field in any case.
    pub lists_active: bool,
}

const fn served(kind: Kind, place: [&'static str; 3], purposes: [&'static str; 2], ending: Ending) -> Served {
    let lists_active = !matches!(kind, Kind::Jobs | Kind::Bookings);
    let ([module, path, scope], [list, feed]) = (place, purposes);
    Served { kind, module, path, scope, list, feed, ending, lists_active }
}

#[rustfmt::skip]
pub const SERVED: &[Served] = &[
    served(Kind::Jobs, ["jpm", "jobs", "tn.jpm.jobs:r"], ["list_jobs", "export_jobs"], Ending::New),
    served(Kind::JobCanceledLogs, ["jpm", "job-canceled-logs", "tn.jpm.jobcanceledlogs:r"], ["", "export_job_canceled_logs"], Ending::Unchanged),
    served(Kind::Appointments, ["jpm", "appointments", "tn.jpm.appointments:r"], ["list_appointments", "export_appointments"], Ending::New),
    served(Kind::JobTypes, ["jpm", "job-types", "tn.jpm.jobtypes:r"], ["list_job_types", ""], Ending::New),
    served(Kind::Bookings, ["crm", "bookings", "tn.crm.bookings:r"], ["list_bookings", "export_bookings"], Ending::Null),
    served(Kind::Customers, ["crm", "customers", "tn.crm.customers:r"], ["list_customers", "export_customers"], Ending::Missing),
    served(Kind::Locations, ["crm", "locations", "tn.crm.locations:r"], ["list_locations", "export_locations"], Ending::Empty),
    served(Kind::AppointmentAssignments, ["dispatch", "appointment-assignments", "tn.dis.appointmentassignments:r"], ["list_appointment_assignments", "export_appointment_assignments"], Ending::New),
    served(Kind::Technicians, ["settings", "technicians", "tn.stt.technicians:r"], ["list_technicians", "export_technicians"], Ending::Unchanged),
    served(Kind::BusinessUnits, ["settings", "business-units", "tn.stt.businessunits:r"], ["list_business_units", "export_business_units"], Ending::New),
];

impl Kind {
    pub fn served(self) -> &'static Served {
        let found = SERVED.iter().find(|served| served.kind == self);
        found.expect("every kind is served; a test holds the table to that")
    }

    pub fn all() -> impl Iterator<Item = Self> {
        SERVED.iter().map(|served| served.kind)
    }

    pub fn scope(self) -> &'static str {
        self.served().scope
    }

    /// The words under which requests for its list and its feed are counted; empty where there is none.
    pub fn list_purpose(self) -> &'static str {
        self.served().list
    }

    pub fn feed_purpose(self) -> &'static str {
        self.served().feed
    }

    /// The kind's word, as in the control endpoint.
    pub fn word(self) -> String {
        let word = serde_json::to_value(self).ok();
        word.as_ref().and_then(|word| word.as_str()).unwrap_or_default().to_owned()
    }
}

/// What is served at `/{module}/v2/tenant/{tenant}/{path}`.
pub fn at(module: &str, path: &str) -> Option<&'static Served> {
    SERVED.iter().find(|served| served.module == module && served.path == path)
}
