//! How a provider and its streams are described. Plain data, never evaluated: JSON pointers and path slots, nothing
//! more. When you want an `if`, override a method of `Provider`.

use std::time::Duration;

/// A SaaS product whose records are mirrored.
#[derive(Debug)]
pub struct ProviderSpec {
    /// The word in configuration, tables, endpoints and logs, such as `hubspot`.
    pub name: &'static str,
    /// The product's own spelling, such as `HubSpot`.
    pub title: &'static str,
    /// The kinds of grant it takes; the first is the default.
    pub grants: &'static [GrantSpec],
    /// Real endpoints; every one can be replaced by a setting.
    pub authorize_url: &'static str,
    pub token_url: &'static str,
    pub revoke_url: &'static str,
    /// What is appended to the token URL for RFC 7662 introspection; empty where there is none.
    pub introspect_path: &'static str,
    pub api_base: &'static str,
    /// How paths name the API version; empty where the provider has none.
    pub api_version: &'static str,
    /// Scopes asked for at consent.
    pub scopes: &'static [&'static str],
    /// Whether PKCE (S256) is sent at consent.
    pub pkce: bool,
    /// Whether a person who says no is led back without a word: neither `error` nor `state`.
    pub denies_in_silence: bool,
    /// How the fields of a token request are written.
    pub token_body: BodyStyle,
    /// Whether an access token may be read as a JWT when the answer does not tell its life.
    pub reads_jwt: bool,
    /// Life of an access token when the answer does not tell.
    pub token_life_default: Duration,
    /// What limits our requests. A request that names no bucket is not paced.
    pub buckets: &'static [BucketSpec],
    /// What limits the token endpoint, for all accounts of one client together.
    pub token_bucket: BucketSpec,
    /// Requests of one connection that are under way at once.
    pub in_flight_max: usize,
    /// Records asked for in one page when the setting is 0.
    pub page_size: u32,
    pub streams: &'static [StreamSpec],
}

impl ProviderSpec {
    pub fn stream(&self, name: &str) -> Option<&'static StreamSpec> {
        self.streams.iter().find(|stream| stream.name == name)
    }

    pub fn grant(&self, kind: GrantKind) -> Option<&'static GrantSpec> {
        self.grants.iter().find(|grant| grant.kind == kind)
    }
}

/// How an account authorises us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantKind {
    AuthorizationCode,
    ClientCredentials,
    ApiKey,
    BearerToken,
}

impl GrantKind {
    pub const ALL: [Self; 4] =
        [Self::AuthorizationCode, Self::ClientCredentials, Self::ApiKey, Self::BearerToken];

    /// The word in the CLI, the tables and the logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "authorization_code",
            Self::ClientCredentials => "client_credentials",
            Self::ApiKey => "api_key",
            Self::BearerToken => "bearer_token",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether a person consents in a browser.
    pub fn needs_consent(self) -> bool {
        self == Self::AuthorizationCode
    }
}

/// One kind of grant: what it needs, and how its credential travels.
#[derive(Debug)]
pub struct GrantSpec {
    pub kind: GrantKind,
    /// `--param` names that must be given at connect.
    pub params: &'static [&'static str],
    /// `--secret` names that must be given at connect; the first is the credential itself.
    pub secrets: &'static [&'static str],
    /// How an API request carries the credential.
    pub placement: Placement,
    /// Secrets that every API request carries besides: header name and `--secret` name.
    pub headers: &'static [(&'static str, &'static str)],
}

/// Where an API request carries its credential: header name and what stands before the value.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    pub header: &'static str,
    pub prefix: &'static str,
}

/// `Authorization: Bearer …`
pub const BEARER: Placement = Placement { header: "authorization", prefix: "Bearer " };

/// How the fields of a token request are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BodyStyle {
    /// As RFC 6749 has it.
    #[default]
    Form,
    /// As Housecall Pro's integrators send it.
    Json,
}

/// Pauses that last longer may have lost their reason when a person doubts them; what the provider asked for a moment ago,
/// and is over soon, has not.
pub const PAUSE_DOUBTED: Duration = Duration::from_mins(30);

/// A limit on requests.
#[derive(Debug, Clone, Copy)]
pub struct BucketSpec {
    pub name: &'static str,
    pub limit: u32,
    pub per: Duration,
    pub counts: Counts,
    pub scope: Scope,
    /// Whether the provider publishes it. After refusals of one that it does not, pauses double.
    pub published: bool,
}

/// Stands for all limits of an account, where a refusal is of the account as a whole.
pub const EVERY_BUCKET: &str = "all";

impl BucketSpec {
    /// A pace of our own for requests to one account, where the provider publishes no limit.
    pub const fn own_pace(name: &'static str, limit: u32, per: Duration) -> Self {
        Self { published: false, ..Self::requests(name, limit, per) }
    }

    /// At most `limit` requests to one account in any span of `per`.
    pub const fn requests(name: &'static str, limit: u32, per: Duration) -> Self {
        Self { name, limit, per, counts: Counts::Requests, scope: Scope::Account, published: true }
    }

    /// A budget of `limit` points for one account, which comes back evenly: all of it in `per`.
    pub const fn points(name: &'static str, limit: u32, per: Duration) -> Self {
        Self { name, limit, per, counts: Counts::Points, scope: Scope::Account, published: true }
    }

    /// At most `limit` requests from one address in any span of `per`, whichever account they are for.
    pub const fn egress(name: &'static str, limit: u32, per: Duration) -> Self {
        Self { name, limit, per, counts: Counts::Requests, scope: Scope::Egress, published: true }
    }
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// Each request as one.
    Requests,
    /// What a request costs: [`crate::domain::step::Request::points`].
    Points,
}

/// Whose requests a limit counts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those to one account.
    Account,
    /// Those that leave from one address, of all daemons of an egress group.
    Egress,
}

/// What is learned about an account, and the stream of the provider that learns it: one that is read in snapshots, and
/// itself needs no facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact {
    pub name: &'static str,
    pub taught_by: &'static str,
}

/// One stream of records of one provider: a table of the mirror.
#[derive(Debug)]
pub struct StreamSpec {
    pub name: &'static str,
    /// The table in schema `mirror`, without the schema.
    pub table: &'static str,
    /// The walks it is read by.
    pub modes: &'static [Mode],
    /// Facts that must be known before it can be read. It covers no change that is younger than what it knows.
    pub needs_facts: &'static [Fact],
    /// Where a record has its id, creation and modification.
    pub id: &'static str,
    pub created_at: &'static str,
    pub updated_at: &'static str,
    pub columns: &'static [Column],
    /// Whether its table has `merged_into`: records of this stream can be merged into one another.
    pub merges: bool,
    /// The fields of a record that are kept, where others may be nobody's business: of those the names are listed in
    /// `mirror.drift` when they are new, and no more. Empty: all are kept.
    pub keep_only: &'static [&'static str],
    /// JSON pointers to what is not kept of a record, `*` standing for every element of an array: links that let
    /// whoever has them act, pay, places people live at.
    pub omit: &'static [&'static str],
    pub read: Read,
}

/// How a stream is read.
#[derive(Debug)]
pub enum Read {
    /// By the provider's own `step`.
    Own,
    /// As `providers::interpret` reads every list of this description.
    List(ListSpec),
}

/// A list that is read page by page with GET.
#[derive(Debug)]
pub struct ListSpec {
    /// Path below the API base. `{name}` stands for the parameter of that name that the admin gave at connect.
    pub path: &'static str,
    /// Where a page has its records.
    pub records: &'static str,
    /// Sent with every request.
    pub query: &'static [(&'static str, &'static str)],
    pub paging: Paging,
    /// The name of the parameter that says how many records a page is to have; empty where there is none.
    pub size: &'static str,
    pub changes: Changes,
    pub buckets: &'static [&'static str],
}

/// How a list tells its next page.
#[derive(Debug, Clone, Copy)]
pub enum Paging {
    /// It has one page.
    Single,
    /// Pages are numbered from 1. `more` points to a boolean, or to the number of pages there are; `total`, where it is
    /// not empty, to the number of records.
    Numbered { param: &'static str, more: &'static str, total: &'static str },
    /// The next page begins after the id of this one's last record, as long as the flag at `more` is set or, without
    /// such a flag, the `Link` header names a next page.
    LastId { param: &'static str, more: &'static str },
    /// A page carries the cursor of the next one.
    Cursor { param: &'static str, next: &'static str },
}

/// How the changes since some time are found.
#[derive(Debug, Clone, Copy)]
pub enum Changes {
    /// Not at all.
    None,
    /// By a window on the time of modification: `from` exclusive or inclusive, `to` where the list takes one.
    Window { from: &'static str, to: Option<&'static str> },
    /// By the order: asked with these fields the list shows the last modified first, with `full` it shows all in an
    /// order that changes do not disturb.
    NewestFirst {
        newest: &'static [(&'static str, &'static str)],
        full: &'static [(&'static str, &'static str)],
        /// Whether no two records share a place in that order. Where they do, it is that of their creation.
        full_is_unique: bool,
    },
}

/// The kinds of walk. Each keeps its own position and interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Everything once, resumable.
    Backfill,
    /// What changed since the watermark.
    Incremental,
    /// The provider's own list of archived records.
    Archived,
    /// The whole stream each time: small lists that show no change marker. A closed one proves what is gone.
    Snapshot,
    /// Every id there is, resumable and rarely: a closed one proves what is gone.
    Sweep,
}

impl Mode {
    pub const ALL: [Self; 5] =
        [Self::Backfill, Self::Incremental, Self::Archived, Self::Snapshot, Self::Sweep];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Incremental => "incremental",
            Self::Archived => "archived",
            Self::Snapshot => "snapshot",
            Self::Sweep => "sweep",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text)
    }
}

/// How often walks of an account begin by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    pub poll: Duration,
    pub archived: Duration,
    pub sweep: Duration,
}

/// The longest pause after a walk that did not close.
pub const PAUSE_MAX: Duration = Duration::from_hours(24);
/// A time that lies further ahead than anything sets one by this much was set by a clock that ran ahead.
pub const AHEAD_MAX: Duration = Duration::from_hours(1);

impl Rhythm {
    /// `None`: not by itself.
    pub fn of(self, mode: Mode) -> Option<Duration> {
        match mode {
            Mode::Backfill => None,
            Mode::Archived => Some(self.archived),
            Mode::Incremental | Mode::Snapshot => Some(self.poll),
            Mode::Sweep => Some(self.sweep),
        }
    }

    /// How far ahead a walk may be due, which `fails` or does not, unless a clock ran ahead.
    pub fn due_within(self, mode: Mode, fails: bool) -> Duration {
        let interval = self.of(mode).unwrap_or_default();
        AHEAD_MAX + if fails { interval.max(PAUSE_MAX) } else { interval }
    }
}

/// A typed column: where its value stands in the record, and how it is read.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    pub kind: ColumnType,
    /// JSON pointer into `raw`; in one of a `TextArray`, `*` stands for every element of an array.
    pub at: &'static str,
    /// The words that the provider is known to send, where the list is closed as far as is known: another is mirrored all
    /// the same, and listed in `mirror.drift`. Empty: any text.
    pub words: &'static [&'static str],
}

impl Column {
    pub const fn one_of(self, words: &'static [&'static str]) -> Self {
        Self { words, ..self }
    }
}

/// The Postgres type of a column. Reading is lenient: see [`crate::domain::values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    Text,
    Timestamptz,
    Numeric,
    Bigint,
    Boolean,
    /// `text[]`, from an array of strings or numbers, or from all that a pointer with `*` leads to.
    TextArray,
    /// `numeric` in major units, from a whole number of hundredths.
    Cents,
    /// `text`: the id of another record, sent as it is or as an object with an `id`.
    Reference,
}

pub const fn col(name: &'static str, kind: ColumnType, at: &'static str) -> Column {
    Column { name, kind, at, words: &[] }
}
