//! The shape of a GraphQL document: which fields it selects, with which arguments.
//!
//! Enough of the language to reckon what a query costs, and to answer one in a stand-in. Types and rules belong to a
//! schema, and there is none here: fragments are put in where they are spread, whatever type they are on; directives
//! and the types of variables are read over.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

/// How deep selections and values may nest, fragments put in.
const DEPTH_MAX: usize = 32;

/// An operation, its fragments put in.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// `query` or `mutation`.
    pub kind: String,
    /// Empty where it has none.
    pub name: String,
    pub fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: String,
    pub alias: Option<String>,
    pub arguments: Vec<(String, Argument)>,
    pub fields: Vec<Field>,
}

impl Field {
    /// The key of its value in the answer.
    pub fn key(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.name)
    }

    pub fn argument(&self, name: &str) -> Option<&Argument> {
        self.arguments.iter().find(|(known, _)| known == name).map(|(_, argument)| argument)
    }

    pub fn field(&self, name: &str) -> Option<&Self> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// A value as it is written in a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    Variable(String),
    /// Numbers, texts, booleans, null; a word of an enumeration as its text.
    Plain(Value),
    List(Vec<Argument>),
    Object(Vec<(String, Argument)>),
}

impl Argument {
    /// The value with `variables` put in; one that is not given is null.
    pub fn value(&self, variables: &Value) -> Value {
        match self {
            Self::Variable(name) => variables.get(name).cloned().unwrap_or_default(),
            Self::Plain(value) => value.clone(),
            Self::List(items) => items.iter().map(|item| item.value(variables)).collect(),
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, field)| (name.clone(), field.value(variables)));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }
}

/// A text that is no document, or one with more than can be read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a GraphQL document has {found} where {expected} is expected")]
pub struct Unreadable {
    found: String,
    expected: &'static str,
}

/// Reads the first operation of a document.
pub fn parse(text: &str) -> Result<Operation, Unreadable> {
    let mut reader = Reader { tokens: tokens(text)?, at: 0 };
    let mut operation = None;
    let mut fragments = BTreeMap::new();
    while let Some(token) = reader.peek() {
        if *token == Token::Name("fragment") {
            reader.next("fragment")?;
            let name = reader.name("the fragment's name")?;
            reader.name("`on`")?;
            reader.name("a type")?;
            fragments.insert(name, reader.selections(0)?);
        } else {
            let read = reader.operation()?;
            operation = operation.or(Some(read));
        }
    }
    let (kind, name, selections) = operation.ok_or(unreadable("nothing", "an operation"))?;
    let fields = put_in(&selections, &fragments, 0)?;
    Ok(Operation { kind: kind.to_owned(), name: name.to_owned(), fields })
}

enum Selection<'a> {
    Field { field: Field, of: Vec<Selection<'a>> },
    Spread(&'a str),
    Inline(Vec<Selection<'a>>),
}

fn put_in(
    selections: &[Selection<'_>],
    fragments: &BTreeMap<&str, Vec<Selection<'_>>>,
    depth: usize,
) -> Result<Vec<Field>, Unreadable> {
    if depth > DEPTH_MAX {
        return Err(unreadable("a selection too deep", "fewer levels"));
    }
    let mut fields = Vec::new();
    for selection in selections {
        match selection {
            Selection::Field { field, of } => {
                fields.push(Field { fields: put_in(of, fragments, depth + 1)?, ..field.clone() });
            }
            Selection::Spread(name) => {
                let fragment = fragments.get(name).ok_or(unreadable(name, "a fragment of the document"))?;
                fields.extend(put_in(fragment, fragments, depth + 1)?);
            }
            Selection::Inline(of) => fields.extend(put_in(of, fragments, depth + 1)?),
        }
    }
    Ok(fields)
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'a> {
    Name(&'a str),
    /// A number or a text.
    Plain(Value),
    Sign(char),
    Spread,
}

fn unreadable(found: &str, expected: &'static str) -> Unreadable {
    Unreadable { found: format!("`{found}`"), expected }
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, Unreadable> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            ' ' | '\t' | '\r' | '\n' | ',' | '\u{feff}' => first.len_utf8(),
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '.' if rest.starts_with("...") => {
                tokens.push(Token::Spread);
                3
            }
            '"' => {
                let (value, length) = quoted(rest)?;
                tokens.push(Token::Plain(value));
                length
            }
            '-' | '0'..='9' => {
                let length = length_of(rest, |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
                let number = rest[..length].parse::<Number>();
                tokens.push(Token::Plain(Value::Number(
                    number.map_err(|_| unreadable(&rest[..length], "a number"))?,
                )));
                length
            }
            'a'..='z' | 'A'..='Z' | '_' => {
                let length = length_of(rest, |c| c.is_ascii_alphanumeric() || c == '_');
                tokens.push(Token::Name(&rest[..length]));
                length
            }
            '{' | '}' | '(' | ')' | '[' | ']' | ':' | '$' | '!' | '=' | '@' | '|' | '&' => {
                tokens.push(Token::Sign(first));
                1
            }
            other => return Err(unreadable(&other.to_string(), "a name, a value or a sign")),
        };
        rest = &rest[length..];
    }
    Ok(tokens)
}

fn length_of(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// A text in quotes at the start of `rest`, and how long it is there. GraphQL escapes as JSON does.
fn quoted(rest: &str) -> Result<(Value, usize), Unreadable> {
    let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    match stream.next() {
        Some(Ok(value @ Value::String(_))) => Ok((value, stream.byte_offset())),
        _ => Err(unreadable("\"", "a text on one line")),
    }
}

struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at)
    }

    fn next(&mut self, expected: &'static str) -> Result<Token<'a>, Unreadable> {
        let token = self.peek().cloned().ok_or(unreadable("its end", expected))?;
        self.at += 1;
        Ok(token)
    }

    fn takes(&mut self, sign: char) -> bool {
        let there = self.peek() == Some(&Token::Sign(sign));
        self.at += usize::from(there);
        there
    }

    fn sign(&mut self, sign: char, expected: &'static str) -> Result<(), Unreadable> {
        match self.next(expected)? {
            Token::Sign(found) if found == sign => Ok(()),
            other => Err(unreadable(&format!("{other:?}"), expected)),
        }
    }

    fn name(&mut self, expected: &'static str) -> Result<&'a str, Unreadable> {
        match self.next(expected)? {
            Token::Name(name) => Ok(name),
            other => Err(unreadable(&format!("{other:?}"), expected)),
        }
    }

    fn operation(&mut self) -> Result<(&'a str, &'a str, Vec<Selection<'a>>), Unreadable> {
        if self.peek() == Some(&Token::Sign('{')) {
            return Ok(("query", "", self.selections(0)?));
        }
        let kind = self.name("an operation")?;
        let name = match self.peek() {
            Some(Token::Name(_)) => self.name("a name")?,
            _ => "",
        };
        if self.takes('(') {
            while !self.takes(')') {
                self.next("`)` after the variables")?;
            }
        }
        self.directives()?;
        Ok((kind, name, self.selections(0)?))
    }

    fn selections(&mut self, depth: usize) -> Result<Vec<Selection<'a>>, Unreadable> {
        if depth > DEPTH_MAX {
            return Err(unreadable("a selection too deep", "fewer levels"));
        }
        self.sign('{', "`{`")?;
        let mut selections = Vec::new();
        while !self.takes('}') {
            selections.push(match self.peek() {
                Some(Token::Spread) => self.spread(depth)?,
                _ => self.field(depth)?,
            });
        }
        Ok(selections)
    }

    fn spread(&mut self, depth: usize) -> Result<Selection<'a>, Unreadable> {
        self.next("`...`")?;
        match self.peek() {
            Some(Token::Name("on")) => {
                self.next("`on`")?;
                self.name("a type")?;
            }
            Some(Token::Name(_)) => {
                let name = self.name("a fragment")?;
                self.directives()?;
                return Ok(Selection::Spread(name));
            }
            _ => {}
        }
        self.directives()?;
        Ok(Selection::Inline(self.selections(depth + 1)?))
    }

    fn field(&mut self, depth: usize) -> Result<Selection<'a>, Unreadable> {
        let first = self.name("a field")?;
        let (alias, name) =
            if self.takes(':') { (Some(first.to_owned()), self.name("a field")?) } else { (None, first) };
        let arguments = if self.takes('(') { self.arguments(')', depth)? } else { Vec::new() };
        self.directives()?;
        let of = match self.peek() {
            Some(Token::Sign('{')) => self.selections(depth + 1)?,
            _ => Vec::new(),
        };
        Ok(Selection::Field {
            field: Field { name: name.to_owned(), alias, arguments, fields: Vec::new() },
            of,
        })
    }

    fn directives(&mut self) -> Result<(), Unreadable> {
        while self.takes('@') {
            self.name("a directive")?;
            if self.takes('(') {
                self.arguments(')', 0)?;
            }
        }
        Ok(())
    }

    fn arguments(&mut self, end: char, depth: usize) -> Result<Vec<(String, Argument)>, Unreadable> {
        let mut arguments = Vec::new();
        while !self.takes(end) {
            let name = self.name("an argument")?.to_owned();
            self.sign(':', "`:`")?;
            arguments.push((name, self.argument(depth + 1)?));
        }
        Ok(arguments)
    }

    fn argument(&mut self, depth: usize) -> Result<Argument, Unreadable> {
        if depth > DEPTH_MAX {
            return Err(unreadable("a value too deep", "fewer levels"));
        }
        Ok(match self.next("a value")? {
            Token::Sign('$') => Argument::Variable(self.name("a variable")?.to_owned()),
            Token::Plain(value) => Argument::Plain(value),
            Token::Name("null") => Argument::Plain(Value::Null),
            Token::Name("true") => Argument::Plain(Value::Bool(true)),
            Token::Name("false") => Argument::Plain(Value::Bool(false)),
            Token::Name(word) => Argument::Plain(Value::from(word)),
            Token::Sign('[') => {
                let mut items = Vec::new();
                while !self.takes(']') {
                    items.push(self.argument(depth + 1)?);
                }
                Argument::List(items)
            }
            Token::Sign('{') => Argument::Object(self.arguments('}', depth)?),
            other => return Err(unreadable(&format!("{other:?}"), "a value")),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The fields as `key:name{…}`.
    fn shown(fields: &[Field]) -> String {
        let one = |field: &Field| {
            let of = if field.fields.is_empty() { String::new() } else { shown(&field.fields) };
            format!("{}:{}{of}", field.key(), field.name)
        };
        format!("{{{}}}", fields.iter().map(one).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn fields_with_their_fragments() {
        let document = "# a comment, with {
            query Jobs($n: Int!, $after: String = \"}\") @cached(for: 1) {
              jobs(first: $n, after: $after, sort: [{key: UPDATED_AT, direction: DESCENDING}]) {
                nodes { ...JobFields extra: total }
                pageInfo { hasNextPage }
              }
            }
            fragment JobFields on Job { id client { ... on Client { id name @include(if: true) } } }";
        let operation = parse(document).unwrap();
        assert_eq!((operation.kind.as_str(), operation.name.as_str()), ("query", "Jobs"));
        assert_eq!(
            shown(&operation.fields),
            "{jobs:jobs{nodes:nodes{id:id client:client{id:id name:name} extra:total} \
             pageInfo:pageInfo{hasNextPage:hasNextPage}}}"
        );
        let jobs = &operation.fields[0];
        let variables = json!({"n": 50});
        let value = |name| jobs.argument(name).unwrap().value(&variables);
        assert_eq!(value("first"), json!(50));
        assert_eq!(value("after"), Value::Null);
        assert_eq!(value("sort"), json!([{"key": "UPDATED_AT", "direction": "DESCENDING"}]));
    }

    #[test]
    fn values() {
        let operation = parse(r#"{ a(b: [1, -2.5, "q\"\\", true, null], c: {d: {e: F}}) }"#).unwrap();
        let arguments = &operation.fields[0];
        let value = |name| arguments.argument(name).unwrap().value(&Value::Null);
        assert_eq!(value("b").to_string(), r#"[1,-2.5,"q\"\\",true,null]"#);
        assert_eq!(value("c"), json!({"d": {"e": "F"}}));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let deep = format!("{}a{}", "{a".repeat(40), "}".repeat(40));
        for text in [
            "",
            "{",
            "{ a(b) }",
            "{ a(b: ) }",
            "query { ...Nowhere }",
            "{ a { } ",
            "{ a: }",
            "{ % }",
            "{ a(b: \"open) }",
            "fragment F on T { ...F } { ...F }",
            deep.as_str(),
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
