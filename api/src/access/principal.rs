//! Who asks.

use std::sync::Arc;

use probeops_shared::access::{Limits, Scope};
use probeops_shared::ids::{NodeId, Region};
use probeops_shared::invalid::Invalid;
use probeops_shared::problem::Code;
use probeops_shared::registry::NodeGrant;
use probeops_shared::timestamp::Timestamp;
use probeops_shared::tools::ToolName;

use crate::problem::Problem;

/// Who a credential names, and what he may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `key:<id>`, `jwt:<subject>` or `service:<name>`.
    pub name: String,
    /// What he may do.
    pub scopes: Vec<Scope>,
    /// What narrows that.
    pub limits: Limits,
    /// Nodes that he may ask by id though they are in no region of his.
    pub nodes: Vec<NodeId>,
    /// Until when; absent where nothing says so.
    pub expires_at: Option<Timestamp>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Principal(Arc<Identity>);

impl std::ops::Deref for Principal {
    type Target = Identity;
    fn deref(&self) -> &Identity {
        &self.0
    }
}

impl Principal {
    pub(crate) fn of(identity: Arc<Identity>) -> Self {
        Self(identity)
    }

    /// Refuses a tool outside the limits.
    pub fn check_tool(&self, tool: ToolName) -> Result<(), Problem> {
        match &self.limits.tools {
            Some(tools) if !tools.contains(&tool) => Err(outside("tools", tools, &tool, "/tool")),
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses a region outside the limits.
    pub fn check_region(&self, region: &Region, pointer: &str) -> Result<(), Problem> {
        match &self.limits.regions {
            Some(regions) if !self.limits.allow_region(region) => Err(outside("regions", regions, region, pointer)),
            Some(_) | None => Ok(()),
        }
    }
}

impl Identity {
    /// Whether he may everything.
    pub fn is_admin(&self) -> bool {
        self.scopes.contains(&Scope::Admin)
    }

    /// Whether he may see what others ask for: an admin, whom no limit keeps from seeing any of it.
    pub fn oversees(&self) -> bool {
        self.is_admin() && !self.limits.hide_something()
    }

    /// Whether he has the scope.
    pub fn has(&self, scope: Scope) -> bool {
        self.is_admin() || self.scopes.contains(&scope)
    }

    /// Refuses what needs a scope he lacks.
    pub fn check_scope(&self, scope: Scope) -> Result<(), Problem> {
        if self.has(scope) { Ok(()) } else { Err(Problem::missing_scope(scope, &self.scopes)) }
    }

    /// Whether he may know of the node, and ask it by id.
    pub fn sees_node(&self, node: &NodeGrant) -> bool {
        (self.sees_region(&node.region) || self.nodes.contains(&node.id)) && self.limits.allow_node(&node.id, &node.labels)
    }

    /// Whether he may know of the region, if there is a node in it that he may know of.
    pub fn sees_region(&self, region: &Region) -> bool {
        self.limits.allow_region(region)
    }
}

fn outside(limit: &str, allowed: &[impl std::fmt::Display], given: &impl std::fmt::Display, pointer: &str) -> Problem {
    let mut names: Vec<String> = allowed.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        names.push("(none)".to_owned());
    }
    let detail = format!("your credential is limited to the {limit} {}; `{given}` is none of them", names.join(", "));
    Problem::new(Code::Forbidden, detail).at(Invalid::new(pointer, format!("outside the limit `{limit}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(scopes: &[Scope], limits: &str) -> Principal {
        let identity = Identity {
            name: "key:k".to_owned(),
            scopes: scopes.to_vec(),
            limits: serde_json::from_str(limits).unwrap(),
            nodes: Vec::new(),
            expires_at: None,
        };
        Principal::of(Arc::new(identity))
    }

    #[test]
    fn what_is_outside_the_limits_is_refused_by_name() {
        let limited = principal(&[Scope::JobsWrite], r#"{"tools":[],"regions":["eu-*"]}"#);
        let tool = limited.check_tool(ToolName::Echo).unwrap_err();
        assert_eq!(tool.code(), Code::Forbidden);
        assert!(limited.check_region(&"eu-central".parse().unwrap(), "/from").is_ok());
        let region = limited.check_region(&"us-east".parse().unwrap(), "/from").unwrap_err();
        assert_eq!(region.detail(), "your credential is limited to the regions eu-*; `us-east` is none of them");
    }

    #[test]
    fn an_admin_has_every_scope_and_no_limits_limit_nothing() {
        let admin = principal(&[Scope::Admin], "{}");
        assert!(Scope::ALL.into_iter().all(|scope| admin.check_scope(scope).is_ok()));
        assert!(admin.check_tool(ToolName::Echo).is_ok());
        let reader = principal(&[Scope::JobsRead], "{}");
        assert_eq!(reader.check_scope(Scope::JobsWrite).unwrap_err().code(), Code::Forbidden);
    }
}
