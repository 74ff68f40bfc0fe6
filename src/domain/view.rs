//! The view of one account: columns that only the account itself defines.

/// What a view over a table shows of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountView {
    /// The table in schema `mirror`, without the schema.
    pub table: &'static str,
    pub columns: Vec<ViewColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewColumn {
    pub name: String,
    /// Keys from the top of `raw` to the value.
    pub path: Vec<String>,
    pub kind: ViewType,
    pub comment: String,
}

/// Types of a view's columns; a value that is not of the type shows as null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewType {
    Text,
    Numeric,
    Boolean,
    Timestamptz,
    Date,
}

impl ViewType {
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Numeric => "numeric",
            Self::Boolean => "boolean",
            Self::Timestamptz => "timestamptz",
            Self::Date => "date",
        }
    }
}
