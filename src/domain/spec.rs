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
    /// Life of an access token when the answer does not tell.
    pub token_life_default: Duration,
    /// What limits our requests. A request that names no bucket is not paced.
    pub buckets: &'static [BucketSpec],
    /// What limits the token endpoint, for all accounts of one client together.
    pub token_bucket: BucketSpec,
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
}

/// Where an API request carries its credential: header name and what stands before the value.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    pub header: &'static str,
    pub prefix: &'static str,
}

/// `Authorization: Bearer …`
pub const BEARER: Placement = Placement { header: "authorization", prefix: "Bearer " };

/// A limit on requests: at most `limit` in any span of `per`.
#[derive(Debug, Clone, Copy)]
pub struct BucketSpec {
    pub name: &'static str,
    pub limit: u32,
    pub per: Duration,
}

/// One stream of records of one provider: a table of the mirror.
#[derive(Debug)]
pub struct StreamSpec {
    pub name: &'static str,
    /// The table in schema `mirror`, without the schema.
    pub table: &'static str,
    /// The walks it is read by.
    pub modes: &'static [Mode],
    /// Facts that must be known before it can be read; another stream of the provider learns them.
    pub needs_facts: &'static [&'static str],
    /// Where a record has its id, creation and modification.
    pub id: &'static str,
    pub created_at: &'static str,
    pub updated_at: &'static str,
    pub columns: &'static [Column],
    /// Whether its table has `merged_into`: records of this stream can be merged into one another.
    pub merges: bool,
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
}

impl Mode {
    pub const ALL: [Self; 4] = [Self::Backfill, Self::Incremental, Self::Archived, Self::Snapshot];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Incremental => "incremental",
            Self::Archived => "archived",
            Self::Snapshot => "snapshot",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text)
    }
}

/// A typed column: where its value stands in the record, and how it is read.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    pub kind: ColumnType,
    /// JSON pointer into `raw`.
    pub at: &'static str,
}

/// The Postgres type of a column. Reading is lenient: see [`crate::domain::values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    Text,
    Timestamptz,
    Numeric,
    Bigint,
    Boolean,
    /// `text[]`, from an array of strings or numbers.
    TextArray,
}

impl ColumnType {
    pub fn sql(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Timestamptz => "timestamp with time zone",
            Self::Numeric => "numeric",
            Self::Bigint => "bigint",
            Self::Boolean => "boolean",
            Self::TextArray => "text[]",
        }
    }
}

pub const fn col(name: &'static str, kind: ColumnType, at: &'static str) -> Column {
    Column { name, kind, at }
}
