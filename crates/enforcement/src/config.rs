//! The options of policies as types.

use options::agent::{BadOption, Options, Setting};

/// How NetworkPolicies are enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    /// `POLICY_POINT`.
    pub point: PointChoice,
    /// `POLICY_ESTABLISHED` is `cut`: a running connection that is denied from now on ends.
    pub cuts: bool,
    /// `POLICY_EGRESS_TO_OWN_NODE` is `judge`.
    pub judges_own_node: bool,
    /// `POLICY_UNPREPARED`.
    pub unprepared: Unprepared,
    /// `POLICY_DENY` is `reject`: a denied packet is answered.
    pub rejects: bool,
    /// `POLICY_HBONE` is `inner`: connections through the tunnel are judged by the port inside.
    pub judges_tunnel: bool,
    /// `POLICY_POD_POINT_MAX`: most elements of the sets in one pod's namespace.
    pub pod_point_max: usize,
    /// `TENANTS_ENFORCEMENT` is `on`.
    pub enforces_tenants: bool,
}

/// Where policies of pods are enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointChoice {
    /// In the node's namespace where a pod's packets are seen there, else in the pod's.
    Auto,
    /// In the node's.
    Node,
    /// In the pod's.
    Pod,
}

/// What an ADD without the agent does where a policy that was known last selects the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unprepared {
    /// The pod starts isolated.
    Closed,
    /// It fails.
    Fail,
    /// The pod starts unjudged.
    Open,
}

impl PolicyConfig {
    /// Nothing where policies are not enforced.
    ///
    /// # Errors
    /// The first option that means nothing.
    pub fn new(options: &Options) -> Result<Option<Self>, BadOption> {
        let is_on =
            word(options, Setting::PolicyEnforcement, "policy-enforcement", [("off", false), ("on", true)])?;
        let most = options.number(Setting::PolicyPodPointMax);
        let pod_point_max = usize::try_from(most).ok().filter(|most| *most > 0).ok_or_else(|| {
            let text = options.text(Setting::PolicyPodPointMax);
            BadOption::new("policy-pod-point-max", text, "is not a number above 0")
        })?;
        let points = [("auto", PointChoice::Auto), ("node", PointChoice::Node), ("pod", PointChoice::Pod)];
        let unprepared =
            [("closed", Unprepared::Closed), ("fail", Unprepared::Fail), ("open", Unprepared::Open)];
        let own_node = [("judge", true), ("allow", false)];
        // All of them have to mean something, also where they do nothing.
        let config = Self {
            point: word(options, Setting::PolicyPoint, "policy-point", points)?,
            cuts: word(
                options,
                Setting::PolicyEstablished,
                "policy-established",
                [("cut", true), ("keep", false)],
            )?,
            judges_own_node: word(
                options,
                Setting::PolicyEgressToOwnNode,
                "policy-egress-to-own-node",
                own_node,
            )?,
            unprepared: word(options, Setting::PolicyUnprepared, "policy-unprepared", unprepared)?,
            rejects: word(options, Setting::PolicyDeny, "policy-deny", [("drop", false), ("reject", true)])?,
            judges_tunnel: word(
                options,
                Setting::PolicyHbone,
                "policy-hbone",
                [("inner", true), ("port", false)],
            )?,
            pod_point_max,
            enforces_tenants: enforces_tenants(options, is_on)?,
        };
        Ok(is_on.then_some(config))
    }
}

/// Tenants are enforced by what enforces policies, and beside them.
fn enforces_tenants(options: &Options, enforces_policies: bool) -> Result<bool, BadOption> {
    let name = "tenants-enforcement";
    let enforces = word(options, Setting::TenantsEnforcement, name, [("off", false), ("on", true)])?;
    if enforces && !enforces_policies {
        let text = options.text(Setting::TenantsEnforcement);
        let why = "needs policy-enforcement on beside it: tenants hand on to NetworkPolicies";
        return Err(BadOption::new(name, text, why));
    }
    Ok(enforces)
}

/// What the word of an option stands for.
fn word<T: Copy, const N: usize>(
    options: &Options,
    setting: Setting,
    name: &'static str,
    words: [(&str, T); N],
) -> Result<T, BadOption> {
    let text = options.text(setting);
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    found.ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        BadOption::new(name, text, format!("is not one of {}", words.join(", ")))
    })
}
