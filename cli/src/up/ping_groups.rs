//! Who may open a ping socket: Linux' `ping_group_range`. Only `--allow-ping` changes it.

use std::path::Path;

use crate::exit::Failed;
use crate::terminal::note;

const SETTING: &str = "/proc/sys/net/ipv4/ping_group_range";

/// Adds our group to those that may ping. Needs root; does nothing if it is there already.
pub(super) fn allow() -> Result<(), Failed> {
    let group = nix::unistd::getegid().as_raw();
    let text = std::fs::read_to_string(SETTING).map_err(|error| Failed::work(format!("cannot read {SETTING}: {error}")))?;
    let Some(range) = widened(&text, group) else { return Ok(()) };
    let command = format!("sysctl -w net.ipv4.ping_group_range=\"{range}\"");
    if !nix::unistd::geteuid().is_root() {
        return Err(Failed::usage(format!(
            "--allow-ping changes a setting of this machine and needs root; run `sudo {command}` and leave the flag out"
        )));
    }
    std::fs::write(Path::new(SETTING), &range).map_err(|error| Failed::work(format!("cannot do what `{command}` does: {error}")))?;
    note(format!("did what `{command}` does"));
    Ok(())
}

/// The range that has the group in it as well; nothing if it is in it already.
fn widened(text: &str, group: u32) -> Option<String> {
    let mut bounds = text.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
    match (bounds.next(), bounds.next()) {
        (Some(first), Some(last)) if (first..=last).contains(&group) => None,
        // `1 0`, the kernel's default, is nobody.
        (Some(first), Some(last)) if first <= last => Some(format!("{} {}", first.min(group), last.max(group))),
        (_, _) => Some(format!("{group} {group}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_added_and_nobody_loses_what_he_has() {
        assert_eq!(widened("1\t0\n", 65_534).as_deref(), Some("65534 65534"));
        assert_eq!(widened("0 2147483647\n", 65_534), None);
        assert_eq!(widened("100 200\n", 65_534).as_deref(), Some("100 65534"));
        assert_eq!(widened("100 200\n", 0).as_deref(), Some("0 200"));
    }
}
