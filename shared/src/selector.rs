//! From where a job is to run.

mod read;
mod schema;

use std::fmt;
use std::str::FromStr;

use crate::bounded::shown;
use crate::ids::{LabelKey, LabelValue, NodeId, Region};
use crate::planted;
use crate::registry::Labels;
use crate::text::as_text;

/// How many runs one job may have, and so how many distinct nodes a selector may want.
pub const RUNS_PER_JOB_MAX: u16 = 1_000;
/// How many terms a selector by labels may have.
pub const TERMS_MAX: usize = 8;
/// How many values a term `in` may have.
pub const VALUES_MAX: usize = 16;

/// What every message about a selector that is none ends with.
const WANTS: &str = "write a region such as eu-central (any one node of it), eu-central:all, eu-central*3 (three of its nodes), node:fra-1, \
                     `*` (one node of every region), `*:all`, `*5`, or labels such as site=fra,env!=lab";
const TAKE_WANTS: &str = "\"one\", \"all\" or how many distinct nodes, from 1 to 1000";

/// Which node or nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// This node.
    Node(NodeId),
    /// Nodes of a place.
    Nodes {
        /// Of where.
        place: Place,
        /// How many of them.
        take: Take,
    },
}

/// What nodes have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Their region.
    Region(Region),
    /// Nothing.
    Everywhere,
    /// Their labels: all of this holds.
    Labels(Vec<Term>),
}

/// What holds of a node's labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// It has the label with this value.
    Equal(LabelKey, LabelValue),
    /// It has not: it lacks the label, or has it with another value.
    Unequal(LabelKey, LabelValue),
    /// It has the label with one of these values.
    In(LabelKey, Vec<LabelValue>),
}

/// How many nodes of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Take {
    /// Any one; of everywhere: any one of each region.
    One,
    /// Every one.
    All,
    /// So many different ones; of everywhere: of the regions in turn.
    Distinct(u16),
}

impl Selector {
    /// Any one node of a region.
    pub fn region(region: Region) -> Self {
        Self::Nodes { place: Place::Region(region), take: Take::One }
    }
}

impl Term {
    /// Whether it holds of these labels.
    pub fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::Equal(key, value) => labels.get(key) == Some(value),
            Self::Unequal(key, value) => labels.get(key) != Some(value),
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
        }
    }

    /// Whether `other` holds wherever this does.
    pub fn implies(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Equal(key, value), Self::Equal(of, wanted)) => key == of && value == wanted,
            (Self::Equal(key, value), Self::In(of, wanted)) => key == of && wanted.contains(value),
            (Self::Equal(key, value), Self::Unequal(of, unwanted)) => key == of && value != unwanted,
            (Self::In(key, values), Self::Equal(of, wanted)) => key == of && values.iter().all(|value| value == wanted),
            (Self::In(key, values), Self::In(of, wanted)) => key == of && values.iter().all(|value| wanted.contains(value)),
            (Self::In(key, values), Self::Unequal(of, unwanted)) => key == of && !values.contains(unwanted),
            (Self::Unequal(key, value), Self::Unequal(of, unwanted)) => key == of && value == unwanted,
            (Self::Unequal(..), Self::Equal(..) | Self::In(..)) => false,
        }
    }
}

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(id) = text.strip_prefix("node:") {
            return id.parse().map(Self::Node);
        }
        let (place, take) = split_take(text)?;
        let place = if place == "*" {
            Place::Everywhere
        } else if place.contains(['=', ' ', '(']) {
            Place::Labels(terms(place)?)
        } else if let Some((kind, _)) = place.split_once(':') {
            return Err(format!("`{}:` selects nothing; {WANTS}", kind.chars().take(64).collect::<String>()));
        } else {
            Place::Region(place.parse()?)
        };
        Ok(Self::Nodes { place, take })
    }
}

/// The place, and how many of it: what stands after its `:` or `*`.
fn split_take(text: &str) -> Result<(&str, Take), String> {
    if let Some(place) = text.strip_suffix(":all") {
        return Ok((place, Take::All));
    }
    match text.rsplit_once('*') {
        None | Some(("", "")) => Ok((text, Take::One)),
        Some((place, count)) => {
            let plain = !count.is_empty() && !count.starts_with('0') && count.bytes().all(|byte| byte.is_ascii_digit());
            let number = count.parse().ok().filter(|number| plain && (1..=RUNS_PER_JOB_MAX).contains(number));
            let wrong =
                || format!("after `*` stands how many distinct nodes, from 1 to {RUNS_PER_JOB_MAX}, not {}; {WANTS}", shown(&count.into()));
            Ok((if place.is_empty() { "*" } else { place }, Take::Distinct(number.ok_or_else(wrong)?)))
        }
    }
}

fn terms(text: &str) -> Result<Vec<Term>, String> {
    // Commas between parentheses separate values.
    let mut open = false;
    let parts = text.split(|character| {
        match character {
            '(' => open = true,
            ')' => open = false,
            _ => {}
        }
        character == ',' && !open
    });
    let mut terms: Vec<Term> = parts.map(|part| part.trim().parse()).collect::<Result<_, _>>()?;
    if let [Term::In(..), .., Term::In(_, values)] = terms.as_mut_slice()
        && planted!("selector" if values.len() > 1)
    {
        values.clear();
    }
    bounded(terms)
}

/// Not too many terms.
fn bounded(terms: Vec<Term>) -> Result<Vec<Term>, String> {
    let count = terms.len();
    if (1..=TERMS_MAX).contains(&count) { Ok(terms) } else { Err(format!("labels are 1 to {TERMS_MAX} terms, not {count}")) }
}

impl Term {
    /// One of these values.
    fn one_of(key: LabelKey, values: Vec<LabelValue>) -> Result<Self, String> {
        let count = values.len();
        if (1..=VALUES_MAX).contains(&count) {
            return Ok(Self::In(key, values));
        }
        Err(format!("label `{key}` may be one of 1 to {VALUES_MAX} values, not of {count}"))
    }
}

impl FromStr for Term {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((key, values)) = text.split_once(" in ") {
            let list = values.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
            let list = list.ok_or_else(|| format!("after `in` stand values in parentheses: {key} in (edge,core)"))?;
            let values = list.split(',').map(|value| value.trim().parse()).collect::<Result<_, _>>()?;
            return Self::one_of(key.trim().parse()?, values);
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Ok(Self::Unequal(key.parse()?, value.parse()?));
        }
        match text.split_once('=') {
            Some((key, value)) => Ok(Self::Equal(key.parse()?, value.parse()?)),
            None => Err(format!("{} says nothing of a label; write site=fra, env!=lab or role in (edge,core)", shown(&text.into()))),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node:{node}"),
            Self::Nodes { place: Place::Everywhere, take: Take::Distinct(count) } => write!(f, "*{count}"),
            Self::Nodes { place, take } => {
                match place {
                    Place::Region(region) => region.fmt(f)?,
                    Place::Everywhere => f.write_str("*")?,
                    Place::Labels(terms) => write_joined(f, terms)?,
                }
                match take {
                    Take::One => Ok(()),
                    Take::All => f.write_str(":all"),
                    Take::Distinct(count) => write!(f, "*{count}"),
                }
            }
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal(key, value) => write!(f, "{key}={value}"),
            Self::Unequal(key, value) => write!(f, "{key}!={value}"),
            Self::In(key, values) => {
                write!(f, "{key} in (")?;
                write_joined(f, values)?;
                f.write_str(")")
            }
        }
    }
}

fn write_joined(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(",")?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

/// The terms of a list with commas, all of which are to hold: `site=fra,role in (edge,core)`.
pub fn read_terms(text: &str) -> Result<Vec<Term>, String> {
    terms(text)
}

as_text!(Term, {
    "type": "string", "maxLength": schema::TERM_LENGTH_MAX, "pattern": (schema::term_pattern()), "examples": ["site=fra"],
});

/// The selectors of a list with commas. Labels have commas of their own: a text with `=` or ` in ` is one selector.
pub fn split_list(text: &str) -> Vec<&str> {
    if text.contains('=') || text.contains(" in ") { vec![text] } else { text.split(',').collect() }
}

#[cfg(test)]
mod tests;
