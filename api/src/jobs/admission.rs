//! Whether a job may run: by the limits of who asks, and by the time it is given.

use std::time::Duration;

use probeops_shared::host::{DnsName, Host};
use probeops_shared::invalid::Invalid;
use probeops_shared::job::GRACE;
use probeops_shared::problem::Code;
use probeops_shared::tools::Spec;

use crate::access::Principal;
use crate::problem::Problem;

/// The name or literal address is judged here, so that a caller learns at once; the node judges again, with every address.
pub(super) fn check_target(principal: &Principal, spec: &Spec) -> Result<(), Problem> {
    let Some(targets) = &principal.limits.targets else { return Ok(()) };
    let target = spec.target();
    let allowed = match (target.parse::<Host>(), target.parse::<DnsName>()) {
        (Ok(Host::Address(address)), _) | (Err(_), Ok(DnsName::Address(address))) => targets.allow_literal(address),
        (Ok(Host::Name(name)), _) | (Err(_), Ok(DnsName::Name(name))) => targets.allow_name(&name),
        (Err(_), Err(_)) => true,
    };
    if allowed {
        return Ok(());
    }
    let detail = format!("your credential is limited to the targets {targets}; `{target}` is none of them");
    Err(Problem::new(Code::Forbidden, detail).at(Invalid::new("/target", "outside the limit `targets`")))
}

/// How long a node may wait with starting: grace, or what `timeout_ms` leaves for it beside the budget.
pub(super) fn start_within(timeout: Option<Duration>, budget: Duration) -> Result<Duration, Problem> {
    let Some(timeout) = timeout else { return Ok(GRACE) };
    if let Some(left) = timeout.checked_sub(budget).filter(|left| !left.is_zero()) {
        return Ok(left.min(GRACE));
    }
    let (timeout_ms, budget_ms) = (timeout.as_millis(), budget.as_millis());
    let detail = format!(
        "{timeout_ms} ms is too short: this tool with these parameters may take {budget_ms} ms (lower `timeout`, `count` or `interval_ms`, or allow more than {budget_ms})"
    );
    Err(Problem::new(Code::Invalid, "timeout_ms is smaller than the tool's budget").at(Invalid::new("/timeout_ms", detail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_caps_grace_but_not_the_budget() {
        let budget = Duration::from_secs(8);
        assert_eq!(start_within(None, budget).unwrap(), GRACE);
        assert_eq!(start_within(Some(Duration::from_secs(10)), budget).unwrap(), Duration::from_secs(2));
        assert_eq!(start_within(Some(Duration::from_secs(60)), budget).unwrap(), GRACE);
        assert!(start_within(Some(budget), budget).is_err());
    }
}
