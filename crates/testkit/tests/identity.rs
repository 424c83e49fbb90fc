//! Who is let in: certificates by request, revocation, bootstrap tokens, tokens in Secrets; issuers and authorizers
//! outside of the cluster. With real kubectl against real clusters.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::Scope;
use testkit::hook::{Hook, Identity};

/// A revocation has to take effect within this.
const EFFECT_MAX: Duration = Duration::from_secs(1);
/// Ports of servers in the cluster's network namespace, where nobody else is.
const ISSUER_PORT: u16 = 7691;
const AUTHORIZER_PORT: u16 = 7692;
/// Expiry of the issuer's tokens: the year 2100. Expiry itself is a matter of unit tests.
const FAR: u64 = 4_102_444_800;

/// The admin's kubeconfig with other credentials.
fn kubeconfig(cluster: &Cluster, name: &str, credentials: &str) -> PathBuf {
    let admin = std::fs::read_to_string(cluster.data().join("admin.kubeconfig")).unwrap();
    let kept: Vec<&str> = admin.lines().filter(|l| !l.trim_start().starts_with("client-")).collect();
    let path = cluster.data().join(format!("{name}.kubeconfig"));
    std::fs::write(&path, format!("{}\n{credentials}", kept.join("\n"))).unwrap();
    path
}

fn kubectl(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(config).arg("--cache-dir").arg(config.with_extension("cache"));
    testkit::process::output(command.args(arguments)).unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A certificate for a user by way of a request that an administrator approves; the credentials for a kubeconfig.
fn certificate(s: &Scope<'_>, user: &str) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, user);
    let request = STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap());
    let name = format!("{user}-{}", s.cluster.pid().unwrap_or(0));
    s.create(
        "certificatesigningrequests",
        json!({"kind": "CertificateSigningRequest", "metadata": {"name": name}, "spec": {"request": request,
            "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"], "expirationSeconds": 86400}}),
    )
    .unwrap();
    let said = s.kubectl(&["certificate", "approve", &name]).unwrap();
    assert!(said.contains("approved"), "{said}");
    let issued = s
        .wait_any("certificatesigningrequests", &name, "a certificate", |c| {
            c["status"]["certificate"].is_string()
        })
        .unwrap();
    s.delete("certificatesigningrequests", &name, &client::DeleteParams::default()).unwrap();
    let chain = issued["status"]["certificate"].as_str().unwrap();
    format!(
        "    client-certificate-data: {chain}\n    client-key-data: {}\n",
        STANDARD.encode(key.serialize_pem())
    )
}

fn grant(s: &Scope<'_>, user: &str) {
    let binding = format!("{user}-views");
    s.kubectl(&["create", "clusterrolebinding", &binding, "--clusterrole=view", &format!("--user={user}")])
        .unwrap();
}

#[test]
fn credentials_of_the_clusters_own() {
    let cluster = Cluster::start().unwrap();
    let s = cluster.scope("default");
    requests_and_revocation(&s);
    bootstrap_tokens(&s);
    tokens_in_secrets(&s);
    bindings(&s);
    escalation(&s);
}

/// Nobody gives away, by any verb, what they do not have.
fn escalation(s: &Scope<'_>) {
    s.kubectl(&[
        "create",
        "clusterrole",
        "role-writer",
        "--verb=get,list,create,update,patch",
        "--resource=roles,rolebindings,clusterroles",
    ])
    .unwrap();
    s.kubectl(&["create", "clusterrolebinding", "bob", "--clusterrole=role-writer", "--user=bob"]).unwrap();
    let bob = |arguments: &[&str]| text(&s.kubectl_raw(&[arguments, &["--as=bob"]].concat()).unwrap());
    let why = "is attempting to grant RBAC permissions not currently held";
    let wide = ["create", "role", "wide", "--verb=get", "--resource=secrets"];
    assert!(bob(&wide).contains(why));
    assert!(
        bob(&["create", "role", "narrow", "--verb=get", "--resource=roles.rbac.authorization.k8s.io"])
            .contains("created")
    );
    let add = r#"[{"op": "add", "path": "/rules/-", "value": {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}}]"#;
    assert!(
        bob(&["patch", "role", "narrow", "--type=json", "-p", add]).contains(why),
        "a patch is no way around"
    );
    assert!(bob(&["create", "rolebinding", "up", "--clusterrole=admin", "--user=bob"]).contains(why));
    assert!(bob(&["create", "rolebinding", "later", "--role=absent", "--user=bob"]).contains("not found"));
    let gather = r#"{"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}}"#;
    let said = bob(&["patch", "clusterrole", "role-writer", "--type=merge", "-p", gather]);
    assert!(said.contains("must have cluster-admin privileges to use an aggregationRule"), "{said}");
}

fn requests_and_revocation(s: &Scope<'_>) {
    grant(s, "ann");
    let ann = kubeconfig(s.cluster, "ann", &certificate(s, "ann"));
    let listed = kubectl(&ann, &["get", "configmaps"]);
    assert!(listed.status.success(), "{}", text(&listed));
    assert!(text(&kubectl(&ann, &["auth", "whoami"])).contains("ann"));

    // Nobody becomes an administrator by request.
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let refused = s.create(
        "certificatesigningrequests",
        json!({"kind": "CertificateSigningRequest", "metadata": {"name": "root"}, "spec": {"request": STANDARD.encode(request),
            "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}}),
    );
    let why = refused.unwrap_err().to_string();
    assert!(
        why.contains(
            "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
        ),
        "{why}"
    );

    // A watch that is open ends with the revocation; the next request is refused, with the reason.
    let watch = format!("/api/v1/namespaces/{}/configmaps?watch=1&timeoutSeconds=300", s.namespace);
    let mut watching = Command::new("kubectl");
    watching.arg("--kubeconfig").arg(&ann).args(["get", "--raw", &watch]).stdout(Stdio::piped());
    let mut watching = watching.spawn().unwrap();
    let mut first = [0];
    watching.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let made = s.create(
        "certificaterevocations",
        json!({"kind": "CertificateRevocation", "metadata": {"name": "ann-left"},
            "spec": {"users": [{"name": "ann"}], "reason": "has left"}}),
    );
    made.unwrap();
    let started = Instant::now();
    loop {
        let refused = kubectl(&ann, &["get", "configmaps"]);
        if !refused.status.success() {
            let said = text(&refused);
            assert!(said.contains("was revoked at") && said.contains("has left"), "{said}");
            break;
        }
        assert!(started.elapsed() < EFFECT_MAX, "still accepted");
    }
    let started = Instant::now();
    while watching.try_wait().unwrap().is_none() {
        if started.elapsed() >= EFFECT_MAX {
            watching.kill().unwrap();
            panic!("the watch is still open");
        }
        s.pause(Duration::from_millis(50));
    }
    s.kubectl(&["delete", "certificaterevocations", "ann-left"]).unwrap();
    assert!(kubectl(&ann, &["get", "configmaps"]).status.success());
}

fn bootstrap_tokens(s: &Scope<'_>) {
    let system = s.cluster.scope("kube-system");
    let (id, secret) = ("abcdef", "0123456789abcdef");
    s.cluster
        .scope("kube-public")
        .create(
            "configmaps",
            json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "apiVersion: v1"}}),
        )
        .unwrap();
    system
        .create(
            "secrets",
            json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token",
                "stringData": {"token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true",
                    "usage-bootstrap-signing": "true", "auth-extra-groups": "system:bootstrappers:workers"}}),
        )
        .unwrap();
    let node = kubeconfig(s.cluster, "node", &format!("    token: {id}.{secret}\n"));
    let who = text(&kubectl(&node, &["auth", "whoami"]));
    assert!(who.contains("system:bootstrap:abcdef") && who.contains("system:bootstrappers:workers"), "{who}");
    // The way a kubelet joins: its request is approved and signed without anybody looking.
    let key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:new");
    let request = STANDARD.encode(params.serialize_request(&key).unwrap().pem().unwrap());
    let csr = s.cluster.data().join("csr.json");
    let object = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "join"}, "spec": {"request": request, "usages": ["digital signature", "client auth"],
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet"}});
    std::fs::write(&csr, object.to_string()).unwrap();
    let made = kubectl(&node, &["create", "-f", csr.to_str().unwrap()]);
    assert!(made.status.success(), "{}", text(&made));
    s.wait_any("certificatesigningrequests", "join", "a certificate", |c| {
        c["status"]["certificate"].is_string()
    })
    .unwrap();
    // Signed for those who hold the token, and readable by anybody.
    let public = s.cluster.scope("kube-public");
    let signature = "jws-kubeconfig-abcdef";
    public
        .wait_any("configmaps", "cluster-info", "a signature", |m| m["data"][signature].is_string())
        .unwrap();
    let (code, ..) = s
        .raw(
            http::Method::GET,
            "/api/v1/namespaces/kube-public/configmaps/cluster-info",
            &[("impersonate-user", "system:anonymous")],
            "",
        )
        .unwrap();
    assert_eq!(code, 200);
    // Its end.
    let past = client::Patch::Merge(json!({"stringData": {"expiration": "2020-01-01T00:00:00Z"}}));
    system.patch("secrets", "bootstrap-token-abcdef", "", &past).unwrap();
    system.wait_gone("secrets", "bootstrap-token-abcdef").unwrap();
    assert!(text(&kubectl(&node, &["auth", "whoami"])).contains("logged in"));
    public
        .wait_any("configmaps", "cluster-info", "no signature", |m| m["data"].get(signature).is_none())
        .unwrap();
}

fn tokens_in_secrets(s: &Scope<'_>) {
    s.create("serviceaccounts", json!({"metadata": {"name": "robot"}})).unwrap();
    s.create(
        "secrets",
        json!({"metadata": {"name": "robot-token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
            "type": "kubernetes.io/service-account-token"}),
    )
    .unwrap();
    let secret = s.wait_any("secrets", "robot-token", "a token", |t| t["data"]["token"].is_string()).unwrap();
    let token = STANDARD.decode(secret["data"]["token"].as_str().unwrap()).unwrap();
    let token = String::from_utf8(token).unwrap();
    let robot = kubeconfig(s.cluster, "robot", &format!("    token: {token}\n"));
    assert!(text(&kubectl(&robot, &["auth", "whoami"])).contains("system:serviceaccount:default:robot"));
    s.wait_any("secrets", "robot-token", "a note of its use", |t| {
        t["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"].is_string()
    })
    .unwrap();
    s.delete("serviceaccounts", "robot", &client::DeleteParams::default()).unwrap();
    s.wait_gone("secrets", "robot-token").unwrap();
    assert!(!kubectl(&robot, &["auth", "whoami"]).status.success());
}

/// Tokens end with what they are bound to, at once.
fn bindings(s: &Scope<'_>) {
    let bound = s.create("secrets", json!({"metadata": {"name": "anchor"}})).unwrap();
    let uid = bound["metadata"]["uid"].as_str().unwrap();
    let created = ["create", "token", "default", "--bound-object-kind=Secret", "--bound-object-name=anchor"];
    let token = s.kubectl(&[&created[..], &["--bound-object-uid", uid]].concat()).unwrap();
    let config = kubeconfig(s.cluster, "bound", &format!("    token: {}\n", token.trim()));
    assert!(kubectl(&config, &["auth", "whoami"]).status.success());
    s.delete("secrets", "anchor", &client::DeleteParams::default()).unwrap();
    assert!(!kubectl(&config, &["auth", "whoami"]).status.success(), "the token outlives its Secret");
}

/// A signed token of the test's issuer.
fn id_token(key: &KeyPair, claims: &Value) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "k"})), part(claims));
    // The key signs in DER; a JWS has both numbers side by side.
    let der = key.sign(signed.as_bytes()).unwrap();
    let number = |at: usize| -> (Vec<u8>, usize) {
        let length = usize::from(der[at + 1]);
        let digits: Vec<u8> = der[at + 2..at + 2 + length].iter().copied().skip_while(|b| *b == 0).collect();
        ([vec![0; 32 - digits.len()], digits].concat(), at + 2 + length)
    };
    let (r, next) = number(2);
    let (s, _) = number(next);
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode([r, s].concat()))
}

fn indented(pem: &str) -> String {
    pem.lines().map(|l| format!("        {l}\n")).collect()
}

/// An authorizer that lets ConfigMaps be listed and denies Secrets.
fn outside_authorizer(identity: Identity, count: Arc<AtomicUsize>) -> Hook {
    Hook::start_at(AUTHORIZER_PORT, identity, Arc::new(move |path, review| {
        assert_eq!(path, "/authorize");
        count.fetch_add(1, Ordering::Relaxed);
        let wanted = &review["spec"]["resourceAttributes"];
        let allowed = wanted["resource"] == "configmaps" && wanted["verb"] == "list";
        json!({"apiVersion": review["apiVersion"], "kind": "SubjectAccessReview",
            "status": {"allowed": allowed, "denied": wanted["resource"] == "secrets", "reason": "so it was decided outside"}})
    }))
    .unwrap()
}

#[test]
fn issuers_and_authorizers_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let (issuer, authorizer) =
        (Identity::new(&["127.0.0.1"]).unwrap(), Identity::new(&["127.0.0.1"]).unwrap());
    let url = format!("https://127.0.0.1:{ISSUER_PORT}");
    let file = |name: &str, content: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let authentication = file(
        "authentication.yaml",
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: {url}\n    \
         audiences: [ferry]\n    certificateAuthority: |\n{}  claimValidationRules:\n  - expression: \"claims.hd == 'example.com'\"\n    \
         message: wrong domain\n  claimMappings:\n    username: {{expression: \"'oidc:' + claims.sub\"}}\n    \
         groups: {{claim: groups, prefix: \"oidc:\"}}\n  userValidationRules:\n  - expression: \"!user.username.startsWith('system:')\"\n\
         anonymous:\n  enabled: true\n  conditions:\n  - path: /livez\n",
            indented(&issuer.ca)
        ),
    );
    let webhook = file(
        "webhook.kubeconfig",
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: w\n  cluster:\n    server: https://127.0.0.1:{AUTHORIZER_PORT}/authorize\n    \
         certificate-authority-data: {}\ncontexts:\n- name: w\n  context: {{cluster: w, user: w}}\ncurrent-context: w\nusers:\n- name: w\n  user: {{}}\n",
            STANDARD.encode(&authorizer.ca)
        ),
    );
    let authorization = file(
        "authorization.yaml",
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- {{type: Node, name: node}}\n\
         - {{type: RBAC, name: rbac}}\n- type: Webhook\n  name: outside\n  webhook:\n    timeout: 3s\n    subjectAccessReviewVersion: v1\n    \
         matchConditionSubjectAccessReviewVersion: v1\n    failurePolicy: Deny\n    connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {webhook}}}\n    \
         matchConditions:\n    - expression: \"request.user.startsWith('oidc:')\"\n"
        ),
    );
    let cluster = Cluster::start_with(&[
        "--authentication-config",
        &authentication,
        "--authorization-config",
        &authorization,
    ])
    .unwrap();
    let key = Arc::new(KeyPair::generate().unwrap());
    let public = key.clone();
    let served = url.clone();
    let _issuer = Hook::start_at(
        ISSUER_PORT,
        issuer,
        Arc::new(move |path, _| match path {
            "/.well-known/openid-configuration" => {
                json!({"issuer": served, "jwks_uri": format!("{served}/keys")})
            }
            _ => {
                let point = public.der_bytes();
                json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k",
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])}]})
            }
        }),
    )
    .unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let _authorizer = outside_authorizer(authorizer, asked.clone());
    let claims = |domain: &str| json!({"iss": url, "aud": "ferry", "sub": "eve", "exp": FAR, "groups": ["dev"], "hd": domain});
    let eve =
        kubeconfig(&cluster, "eve", &format!("    token: {}\n", id_token(&key, &claims("example.com"))));
    let who = text(&kubectl(&eve, &["auth", "whoami"]));
    assert!(who.contains("oidc:eve") && who.contains("oidc:dev"), "{who}\n{}", cluster.log());
    for _ in 0..2 {
        let listed = kubectl(&eve, &["get", "configmaps"]);
        assert!(listed.status.success(), "{}", text(&listed));
    }
    let refused = text(&kubectl(&eve, &["get", "secrets"]));
    assert!(refused.contains("so it was decided outside"), "{refused}");
    let before = asked.load(Ordering::Relaxed);
    assert!(kubectl(&eve, &["get", "configmaps"]).status.success());
    assert_eq!(asked.load(Ordering::Relaxed), before, "the answer is kept");
    let other =
        kubeconfig(&cluster, "other", &format!("    token: {}\n", id_token(&key, &claims("elsewhere.org"))));
    assert!(!kubectl(&other, &["auth", "whoami"]).status.success(), "the claims are wrong");
    let forged = id_token(&KeyPair::generate().unwrap(), &claims("example.com"));
    let forged = kubeconfig(&cluster, "forged", &format!("    token: {forged}\n"));
    assert!(!kubectl(&forged, &["auth", "whoami"]).status.success());
    assert_eq!(
        (nobody(&cluster, "/livez"), nobody(&cluster, "/readyz")),
        (200, 401),
        "conditions of anonymous access"
    );
}

/// What a client without any credentials gets for a path.
fn nobody(cluster: &Cluster, path: &str) -> u16 {
    let config = client::Kubeconfig::load(&cluster.data().join("admin.kubeconfig")).unwrap();
    let https = config.https_config(None, &cluster.data()).unwrap();
    let https = client::HttpsConfig { certificate: None, ..https };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = client::Client::new(Arc::new(client::Https::new(&https).unwrap()), "nobody");
        let request = http::Request::get(path).body(bytes::Bytes::new()).unwrap();
        client.raw(request).await.unwrap().status().as_u16()
    })
}
