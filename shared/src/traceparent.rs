//! Where in a trace something is: the header `traceparent` (W3C Trace Context, Level 2).

use std::fmt;
use std::str::FromStr;

/// The length of the header in version 00.
const LENGTH: usize = 55;
/// The flag that says that spans of this trace are kept.
const SAMPLED: u8 = 0x01;
/// The flags that we know: sampled, and that the trace's id is random.
const FLAGS_KNOWN: u8 = 0x03;

/// A span as those that it causes name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl Traceparent {
    /// The first span of a new trace.
    pub fn new_trace() -> Self {
        Self { trace_id: rand::random::<u128>().max(1), span_id: new_span_id(), flags: FLAGS_KNOWN & !SAMPLED }
    }

    /// The same span, whose trace is kept, or is not.
    #[must_use]
    pub fn sampled(self, sampled: bool) -> Self {
        Self { flags: if sampled { self.flags | SAMPLED } else { self.flags & !SAMPLED }, ..self }
    }

    /// A new span of the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span_id: new_span_id(), ..self }
    }

    /// Which trace; never 0.
    pub fn trace_id(self) -> u128 {
        self.trace_id
    }

    /// Which span of it; never 0.
    pub fn span_id(self) -> u64 {
        self.span_id
    }

    /// The flags: 1 is sampled, 2 that the trace's id is random.
    pub fn flags(self) -> u8 {
        self.flags
    }

    /// Whether the spans of this trace are kept.
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }
}

fn new_span_id() -> u64 {
    rand::random::<u64>().max(1)
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

impl FromStr for Traceparent {
    type Err = &'static str;

    /// Reads the header, of a later version as far as it is known.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = (|| {
            let version = u8::from_str_radix(hex(text.get(..2))?, 16).ok().filter(|version| *version != 0xff)?;
            let dashes = [2, 35, 52].iter().all(|at| text.as_bytes().get(*at) == Some(&b'-'));
            let ends = text.len() == LENGTH || version > 0 && text.as_bytes().get(LENGTH) == Some(&b'-');
            let trace_id = u128::from_str_radix(hex(text.get(3..35))?, 16).ok().filter(|id| *id != 0)?;
            let span_id = u64::from_str_radix(hex(text.get(36..52))?, 16).ok().filter(|id| *id != 0)?;
            let flags = u8::from_str_radix(hex(text.get(53..LENGTH))?, 16).ok()?;
            (dashes && ends).then_some(Self { trace_id, span_id, flags: flags & FLAGS_KNOWN })
        })();
        parsed.ok_or("must be <version>-<trace id>-<span id>-<flags> in lower-case hexadecimal digits, such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    }
}

fn hex(digits: Option<&str>) -> Option<&str> {
    digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_read_only_in_its_own_form() {
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read: Traceparent = given.parse().unwrap();
        assert!(read.is_sampled() && read.to_string() == given);
        // Of a later version what is known counts (W3C Trace Context 3.2.4, 4.3).
        assert_eq!("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more".parse(), Ok(read));
        for bad in [
            "",
            "00-x-y-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert!(bad.parse::<Traceparent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_child_is_another_span_of_the_same_trace() {
        let parent = Traceparent::new_trace().sampled(true);
        let child = parent.child();
        assert!(child.trace_id() == parent.trace_id() && child.span_id() != parent.span_id() && child.is_sampled());
        assert!(!parent.sampled(false).is_sampled() && !Traceparent::new_trace().is_sampled());
        assert_eq!(child.to_string().parse(), Ok(child));
    }
}
