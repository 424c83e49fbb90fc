//! The unmodified kubectl: every command a user has, against one cluster.

use std::process::Output;

use anyhow::ensure;
use testkit::image::BUSYBOX;
use testkit::pods::has;
use testkit::{Cluster, Scope};

/// A file of the test, under the cluster's own directory.
fn file(s: &Scope<'_>, name: &str, text: &str) -> anyhow::Result<String> {
    let path = s.cluster.data().join(name);
    std::fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

/// Runs a line of words; words with blanks are given as further arguments.
fn run(s: &Scope<'_>, line: &str, more: &[&str]) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split_whitespace().chain(more.iter().copied()).collect();
    s.kubectl(&words)
}

fn fails(s: &Scope<'_>, line: &str, code: i32, parts: &[&str]) -> anyhow::Result<()> {
    let out: Output = s.kubectl_raw(&line.split_whitespace().collect::<Vec<_>>())?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.code() == Some(code), "{line}: {:?}\n{text}", out.status.code());
    has(&text, parts)
}

const APP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, labels: {app: app}}
spec:
  replicas: 2
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: c, image: IMAGE, command: [sh, -c, "echo hello; sleep 600"], ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: "1", b: "2"}
"#;

fn app() -> String {
    APP.replace("IMAGE", BUSYBOX)
}

fn applies(s: &Scope<'_>) -> anyhow::Result<()> {
    let path = file(s, "app.yaml", &app())?;
    has(&run(s, "apply --dry-run=server -f", &[&path])?, &["deployment.apps/app created (server dry run)"])?;
    fails(s, &format!("diff -f {path}"), 1, &["+kind: Deployment", "+kind: ConfigMap"])?;
    has(&run(s, "apply -f", &[&path])?, &["deployment.apps/app created", "configmap/settings created"])?;
    has(&run(s, "apply -f", &[&path])?, &["deployment.apps/app unchanged", "configmap/settings unchanged"])?;
    run(s, "diff -f", &[&path])?;
    let next = file(s, "next.yaml", &app().replace("{a: \"1\", b: \"2\"}", "{a: \"3\"}"))?;
    fails(s, &format!("diff -f {next}"), 1, &["-  a: \"1\"", "+  a: \"3\"", "-  b: \"2\""])?;
    has(&run(s, "apply -f", &[&next])?, &["deployment.apps/app unchanged", "configmap/settings configured"])?;
    has(&run(s, "get configmap settings -o jsonpath={.data}", &[])?, &[r#"{"a":"3"}"#])?;
    has(&run(s, "apply view-last-applied configmap settings", &[])?, &["a: \"3\""])?;
    let third = file(s, "third.yaml", &app().replace("{a: \"1\", b: \"2\"}", "{a: \"4\"}"))?;
    fails(
        s,
        &format!("apply --server-side --field-manager=me -f {third}"),
        1,
        &["Apply failed with 1 conflict", "conflict with \"kubectl-client-side-apply\"", "--force-conflicts"],
    )?;
    has(
        &run(s, "apply --server-side --field-manager=me --force-conflicts -f", &[&third])?,
        &["configmap/settings serverside-applied"],
    )?;
    has(
        &run(s, "get configmap settings --show-managed-fields -o yaml", &[])?,
        &["manager: me", "operation: Apply"],
    )?;
    let pruned =
        file(s, "pruned.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, labels: {p: q}}\n")?;
    run(s, "apply -f", &[&pruned])?;
    let other =
        file(s, "other.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: two, labels: {p: q}}\n")?;
    has(
        &run(s, "apply --prune -l p=q --prune-allowlist=core/v1/ConfigMap -f", &[&other])?,
        &["configmap/one pruned"],
    )?;
    let unknown =
        file(s, "unknown.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndatum: {}\n")?;
    fails(s, &format!("apply -f {unknown}"), 1, &["strict decoding error: unknown field \"datum\""])?;
    has(&run(s, "create --validate=warn -f", &[&unknown])?, &["configmap/x created"])
}

fn edits(s: &Scope<'_>) -> anyhow::Result<()> {
    has(&run(s, "patch configmap settings --type=merge -p", &[r#"{"data":{"m":"1"}}"#])?, &["patched"])?;
    has(
        &run(s, "patch configmap settings --type=merge -p", &[r#"{"data":{"m":"1"}}"#])?,
        &["patched (no change)"],
    )?;
    run(s, "patch configmap settings --type=json -p", &[r#"[{"op":"add","path":"/data/j","value":"2"}]"#])?;
    run(
        s,
        "patch deployment app --type=strategic -p",
        &[r#"{"spec":{"template":{"metadata":{"labels":{"x":"y"}}}}}"#],
    )?;
    has(&run(s, "get configmap settings -o go-template={{.data.m}}{{.data.j}}", &[])?, &["12"])?;
    fails(
        s,
        "patch configmap settings --type=json -p [{\"op\":\"test\",\"path\":\"/data/j\",\"value\":\"9\"}]",
        1,
        &["The request is invalid: the server rejected our request due to an error in our request"],
    )?;
    has(
        &run(s, "patch deployment app --subresource=scale --type=merge -p", &[r#"{"spec":{"replicas":2}}"#])?,
        &["patched"],
    )?;
    let replaced = file(
        s,
        "settings.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {r: s}\n",
    )?;
    has(&run(s, "replace -f", &[&replaced])?, &["configmap/settings replaced"])?;
    has(&run(s, "replace --force -f", &[&replaced])?, &["deleted", "replaced"])?;
    has(&run(s, "label configmap settings x=y", &[])?, &["labeled"])?;
    fails(s, "label configmap settings x=z", 1, &["already has a value (y), and --overwrite is false"])?;
    has(&run(s, "label configmap settings x=z --overwrite", &[])?, &["labeled"])?;
    has(&run(s, "label configmap settings x-", &[])?, &["unlabeled"])?;
    has(&run(s, "annotate configmap settings note=well", &[])?, &["annotated"])?;
    has(&run(s, "scale deployment app --replicas=3", &[])?, &["scaled"])?;
    fails(
        s,
        "scale deployment app --current-replicas=7 --replicas=1",
        1,
        &["Expected replicas to be 7, was 3"],
    )?;
    has(&run(s, "autoscale deployment app --min=1 --max=3 --cpu-percent=80", &[])?, &["autoscaled"])?;
    run(s, "delete hpa app", &[])?;
    has(&run(s, "expose deployment app --port=80", &[])?, &["service/app exposed"])?;
    has(&run(s, "set image deployment/app", &[&format!("c={BUSYBOX}")])?, &[])?;
    has(&run(s, "set env deployment/app A=b", &[])?, &["env updated"])?;
    has(&run(s, "set env deployment/app --list", &[])?, &["A=b"])?;
    has(
        &run(s, "set resources deployment/app --limits=memory=64Mi", &[])?,
        &["resource requirements updated"],
    )?;
    has(&run(s, "set serviceaccount deployment app default", &[])?, &["serviceaccount updated"])?;
    has(&run(s, "set selector service app app=app,x=y", &[])?, &["selector updated"])?;
    Ok(())
}

fn rollouts(s: &Scope<'_>) -> anyhow::Result<()> {
    has(&run(s, "rollout status deployment/app --timeout=60s", &[])?, &["successfully rolled out"])?;
    has(&run(s, "rollout history deployment/app", &[])?, &["REVISION", "CHANGE-CAUSE"])?;
    has(&run(s, "rollout pause deployment/app", &[])?, &["paused"])?;
    fails(s, "rollout pause deployment/app", 1, &["is already paused"])?;
    has(&run(s, "rollout resume deployment/app", &[])?, &["resumed"])?;
    has(&run(s, "rollout restart deployment/app", &[])?, &["restarted"])?;
    run(s, "rollout status deployment/app --timeout=60s", &[])?;
    has(&run(s, "rollout undo deployment/app", &[])?, &["rolled back"])?;
    run(s, "rollout status deployment/app --timeout=60s", &[])?;
    for (kind, extra) in [("DaemonSet", ""), ("StatefulSet", "serviceName: x, replicas: 2,")] {
        let name = kind.to_lowercase();
        let yaml = format!(
            "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{extra} selector: {{matchLabels: {{k: {name}}}}}, template: {{metadata: {{labels: {{k: {name}}}}}, spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: {BUSYBOX}, command: [sleep, '600']}}]}}}}}}\n"
        );
        let path = file(s, "set.yaml", &yaml)?;
        run(s, "create -f", &[&path])?;
        let target = format!("{name}/{name}");
        let status = format!("rollout status {target} --timeout=60s");
        run(s, &status, &[])?;
        run(s, &format!("set env {target} A=b"), &[])?;
        run(s, &status, &[])?;
        has(&run(s, &format!("rollout history {target}"), &[])?, &["1", "2"])?;
        has(&run(s, &format!("rollout history {target} --revision=2"), &[])?, &["A:\tb"])?;
        has(&run(s, &format!("rollout undo {target} --to-revision=1"), &[])?, &["rolled back"])?;
        run(s, &status, &[])?;
        has(&run(s, &format!("rollout history {target}"), &[])?, &["2", "3"])?;
        run(s, &format!("delete {target} --cascade=foreground --timeout=60s"), &[])?;
    }
    Ok(())
}

fn creates(s: &Scope<'_>) -> anyhow::Result<()> {
    let from = file(s, "from.txt", "text")?;
    for (line, made) in [
        ("configmap gen --from-literal=a=b".to_owned(), "configmap/gen"),
        (format!("configmap gen-file --from-file={from}"), "configmap/gen-file"),
        ("secret generic gen --from-literal=a=b".into(), "secret/gen"),
        (
            "secret docker-registry reg --docker-server=r --docker-username=u --docker-password=p".into(),
            "secret/reg",
        ),
        (format!("deployment gen --image={BUSYBOX} --replicas=0"), "deployment.apps/gen"),
        (format!("job gen --image={BUSYBOX} -- true"), "job.batch/gen"),
        (format!("cronjob gen --image={BUSYBOX} --schedule=1/5_*_*_*_* -- true"), "cronjob.batch/gen"),
        ("service clusterip cip --tcp=80:80".into(), "service/cip"),
        ("service nodeport np --tcp=80:80".into(), "service/np"),
        ("service externalname en --external-name=example.com".into(), "service/en"),
        ("service loadbalancer lb --tcp=80:80".into(), "service/lb"),
        ("ingress ing --rule=foo.example.com/*=cip:80".into(), "ingress.networking.k8s.io/ing"),
        ("quota q --hard=pods=100".into(), "resourcequota/q"),
        ("role r --verb=get --resource=pods".into(), "role.rbac.authorization.k8s.io/r"),
        ("rolebinding rb --role=r --user=u".into(), "rolebinding.rbac.authorization.k8s.io/rb"),
        (
            "clusterrole kubectl-cr --verb=get --resource=nodes".into(),
            "clusterrole.rbac.authorization.k8s.io/kubectl-cr",
        ),
        (
            "clusterrolebinding kubectl-crb --clusterrole=kubectl-cr --group=g".into(),
            "clusterrolebinding.rbac.authorization.k8s.io/kubectl-crb",
        ),
        ("serviceaccount sa".into(), "serviceaccount/sa"),
        (
            "poddisruptionbudget pdb --selector=app=none --min-available=1".into(),
            "poddisruptionbudget.policy/pdb",
        ),
        ("priorityclass kubectl-pc --value=10".into(), "priorityclass.scheduling.k8s.io/kubectl-pc"),
        ("namespace kubectl-ns".into(), "namespace/kubectl-ns"),
    ] {
        let words: Vec<String> = format!("create {line}").split(' ').map(|w| w.replace('_', " ")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        has(&s.kubectl(&words)?, &[&format!("{made} created")])?;
    }
    ensure!(run(s, "create token sa", &[])?.split('.').count() == 3);
    has(&run(s, "create job again --from=cronjob/gen", &[])?, &["job.batch/again created"])?;
    has(&run(s, "wait --for=condition=complete job/gen job/again --timeout=60s", &[])?, &["condition met"])?;
    let rules = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: rec, namespace: NS}\nrules: [{apiGroups: [''], resources: [pods], verbs: [get]}]\n";
    let rules = file(s, "rules.yaml", &rules.replace("NS", &s.namespace))?;
    has(&run(s, "auth reconcile -f", &[&rules])?, &["role.rbac.authorization.k8s.io/rec reconciled"])?;
    has(&run(s, "auth can-i get pods --as=u", &[])?, &["yes"])?;
    fails(s, "auth can-i delete pods --as=u", 1, &["no"])?;
    has(&run(s, "auth can-i --list --as=u", &[])?, &["pods", "[get]"])?;
    has(&run(s, "auth whoami", &[])?, &["system:masters"])?;
    for name in [
        "clusterrole/kubectl-cr",
        "clusterrolebinding/kubectl-crb",
        "priorityclass/kubectl-pc",
        "namespace/kubectl-ns",
    ] {
        run(s, "delete", &[name])?;
    }
    Ok(())
}

fn pods(s: &Scope<'_>) -> anyhow::Result<()> {
    has(
        &run(
            s,
            "run p --restart=Never --labels=r=p",
            &[&format!("--image={BUSYBOX}"), "--", "sh", "-c", "echo hello; sleep 600"],
        )?,
        &["pod/p created"],
    )?;
    run(s, "wait --for=condition=Ready pod/p --timeout=60s", &[])?;
    ensure!(run(s, "logs p", &[])? == "hello\n");
    has(&run(s, "logs -l r=p --prefix --timestamps --tail=1", &[])?, &["[pod/p/p]", "hello"])?;
    ensure!(run(s, "exec p -- cat /etc/hostname", &[])?.trim() == "p");
    fails(s, "exec p -- sh -c exit\\ 3", 127, &[])
        .or_else(|_| fails(s, "exec p -- false", 1, &["exit code 1"]))?;
    let local = file(s, "copied.txt", "copied")?;
    run(s, "cp", &[&local, "p:/tmp/there.txt"])?;
    let back = s.cluster.data().join("back.txt").to_string_lossy().into_owned();
    run(s, "cp", &["p:/tmp/there.txt", &back])?;
    ensure!(std::fs::read_to_string(&back)? == "copied");
    has(&run(s, "describe pod p", &[])?, &["Name:             p", "Node:", "Events:", "Started"])?;
    run(s, "debug p --image", &[BUSYBOX, "--container=dbg", "--attach=false", "--", "sleep", "60"])?;
    s.wait_any("pods", "p", "the debugging container", |p| {
        p["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object()
    })?;
    has(&run(s, "debug p --copy-to=copy --attach=false --image", &[BUSYBOX, "--", "sleep", "60"])?, &[])?;
    run(s, "get pod copy", &[])?;
    has(&run(s, "events", &[])?, &["LAST SEEN", "Pod/p"])?;
    has(&run(s, "events --for pod/p --types=Normal", &[])?, &["Scheduled"])?;
    has(&run(s, "top pods", &[])?, &["CPU(cores)", "MEMORY(bytes)", "p "])?;
    has(&run(s, "top pod p --containers", &[])?, &["POD", "p", "dbg"])?;
    has(&run(s, "top nodes", &[])?, &["CPU(%)", "MEMORY(%)"])?;
    fails(s, "top pod none", 1, &["Error from server (NotFound): pods.metrics.k8s.io \"none\" not found"])?;
    run(s, "delete pod p copy --now", &[])?;
    fails(s, "get pod p", 1, &["Error from server (NotFound): pods \"p\" not found"])
}

fn shows(s: &Scope<'_>) -> anyhow::Result<()> {
    has(
        &run(s, "explain deployment.spec.strategy --recursive", &[])?,
        &["GROUP:      apps", "rollingUpdate", "maxSurge"],
    )?;
    has(&run(s, "explain statefulsets --output=plaintext-openapiv2", &[])?, &["KIND:     StatefulSet"])?;
    has(&run(s, "get all", &[])?, &["deployment.apps/app", "service/app", "replicaset.apps/app"])?;
    has(&run(s, "get deployments,configmaps -o name", &[])?, &["deployment.apps/app", "configmap/settings"])?;
    has(
        &run(s, "get pods --chunk-size=1 -l app=app -o wide --sort-by=.metadata.name", &[])?,
        &["NOMINATED NODE"],
    )?;
    has(
        &run(s, "get deployment app -o custom-columns=N:.metadata.name,R:.spec.replicas", &[])?,
        &["N     R", "app"],
    )?;
    has(&run(s, "get --raw /readyz", &[])?, &["ok"])?;
    has(
        &run(s, "get namespaces --field-selector=metadata.name=default --no-headers", &[])?,
        &["default", "Active"],
    )?;
    has(&run(s, "get deployments --all-namespaces --show-labels", &[])?, &["NAMESPACE", "LABELS"])?;
    has(
        &run(s, "describe deployment app", &[])?,
        &["StrategyType:           RollingUpdate", "NewReplicaSet:"],
    )?;
    has(&run(s, "describe service app", &[])?, &["Type:", "ClusterIP", "Endpoints:"])?;
    has(&run(s, "describe nodes", &[])?, &["Allocatable:", "Non-terminated Pods:", "Allocated resources:"])?;
    has(
        &run(s, "api-resources --namespaced=true --verbs=list -o name", &[])?,
        &["statefulsets.apps", "cronjobs.batch"],
    )?;
    has(&run(s, "cluster-info dump --namespaces default", &[])?, &["\"kind\": \"NodeList\""])?;
    let root = s.cluster.data().join("kustom");
    std::fs::create_dir_all(&root)?;
    std::fs::write(root.join("app.yaml"), app())?;
    std::fs::write(
        root.join("kustomization.yaml"),
        "resources: [app.yaml]\nnamePrefix: kust-\nlabels: [{pairs: {by: kustomize}}]\n",
    )?;
    let root = root.to_string_lossy().into_owned();
    has(&run(s, "kustomize", &[&root])?, &["name: kust-app", "by: kustomize"])?;
    has(&run(s, "apply -k", &[&root])?, &["deployment.apps/kust-app created"])?;
    has(&run(s, "delete -k", &[&root])?, &["\"kust-app\" deleted"])
}

fn deletes(s: &Scope<'_>) -> anyhow::Result<()> {
    let orphaned = s.list("replicasets", "app=app")?;
    run(s, "delete deployment app --cascade=orphan", &[])?;
    ensure!(!orphaned.is_empty() && s.list("replicasets", "app=app")?.len() == orphaned.len());
    run(s, "delete replicasets -l app=app --cascade=background", &[])?;
    run(s, "wait --for=delete pods -l app=app --timeout=60s", &[])?;
    run(s, "delete configmap settings nothing --ignore-not-found", &[])?;
    has(&run(s, "delete configmap --all --dry-run=client", &[])?, &["deleted (dry run)"])?;
    run(s, "delete all --all --timeout=60s", &[])?;
    ensure!(s.list("services", "")?.is_empty());
    Ok(())
}

#[test]
fn every_command_works() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let s = cluster.namespace("kubectl")?;
    for (name, part) in [
        ("apply", applies as fn(&Scope<'_>) -> anyhow::Result<()>),
        ("edit", edits),
        ("rollout", rollouts),
        ("create", creates),
        ("pods", pods),
        ("show", shows),
        ("delete", deletes),
    ] {
        part(&s).map_err(|error| error.context(format!("kubectl: {name}")))?;
    }
    Ok(())
}
