//! Flow control as the chain sees it.

use serde_json::json;

use super::*;
use crate::path::{Query, parse};

fn small(queues: serde_json::Value) -> Flow {
    let flow = Flow::new(10);
    let response = if queues.is_null() {
        json!({"type": "Reject"})
    } else {
        json!({"type": "Queue", "queuing": queues})
    };
    let level = json!({"metadata": {"name": "small", "uid": "pl"}, "spec": {"type": "Limited",
        "limited": {"nominalConcurrencyShares": 1, "borrowingLimitPercent": 0, "limitResponse": response}}});
    flow.set_level("small", Some(&level));
    let mut schema = defaults::schemas().remove(1).object;
    schema["metadata"] = json!({"name": "all", "uid": "fs"});
    schema["spec"]["matchingPrecedence"] = 5.into();
    schema["spec"]["priorityLevelConfiguration"]["name"] = "small".into();
    flow.set_schema("all", Some(&schema));
    flow
}

async fn ask(flow: &Flow, user: &str) -> Result<Permit, Refused> {
    let info = parse(&http::Method::GET, "/api/v1/pods", &Query::default());
    let user = UserInfo::authenticated(user, &[]);
    flow.admit(Asked { info: &info, path: "/api/v1/pods", user: &user }, |_| Work::ONE).await
}

#[tokio::test(start_paused = true)]
async fn over_the_limit_is_refused_with_words_and_uids() {
    let flow = small(Value::Null);
    // One of six shares of ten seats, rounded up.
    let held = [ask(&flow, "a").await.ok().unwrap(), ask(&flow, "b").await.ok().unwrap()];
    let Err(refused) = ask(&flow, "c").await else { panic!("it ran") };
    let answer = refused.answer();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (429, &"1".parse::<http::HeaderValue>().unwrap())
    );
    assert_eq!(answer.headers()["x-kubernetes-pf-flowschema-uid"], "fs");
    assert_eq!(answer.headers()["x-kubernetes-pf-prioritylevel-uid"], "pl");
    drop(held);
    assert!(ask(&flow, "c").await.is_ok());
    let text = flow.metrics();
    assert!(text.contains("apiserver_flowcontrol_rejected_requests_total{flow_schema=\"all\",priority_level=\"small\",reason=\"concurrency-limit\"} 1"), "{text}");
    assert!(
        text.contains(
            "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"all\",priority_level=\"small\"} 3"
        ),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_requests_run_in_turn_leave_and_time_out() {
    let flow = Arc::new(small(json!({"queues": 4, "handSize": 1, "queueLengthLimit": 10})));
    let held = [ask(&flow, "a").await.ok().unwrap(), ask(&flow, "a").await.ok().unwrap()];
    let (of, other) = (flow.clone(), flow.clone());
    let waits = tokio::spawn(async move { ask(&of, "b").await.is_ok() });
    let leaves = tokio::spawn(async move { ask(&other, "b").await.is_ok() });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        flow.dump("dump_priority_levels", false, &|_| String::new()).unwrap().contains("small, "),
        "{:?}",
        flow.dump("dump_priority_levels", false, &|_| String::new())
    );
    leaves.abort();
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(held);
    assert!(waits.await.unwrap());
    let level = flow.0.levels.lock()["small"].clone();
    assert!(level.queues.lock().is_idle());
    let _held = [ask(&flow, "a").await.ok().unwrap(), ask(&flow, "a").await.ok().unwrap()];
    let began = tokio::time::Instant::now();
    assert!(ask(&flow, "c").await.is_err());
    assert_eq!(began.elapsed(), WAIT_MAX);
    assert_eq!(level.counts[TIMED_OUT].load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn idle_seats_are_lent_to_who_waits() {
    let flow = Arc::new(Flow::new(20));
    for (name, shares) in [("busy", 10), ("idle", 90)] {
        let level = json!({"metadata": {"name": name}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": 90,
            "limitResponse": {"type": "Queue", "queuing": {"queues": 4, "handSize": 2, "queueLengthLimit": 50}}}}});
        flow.set_level(name, Some(&level));
    }
    let mut schema = defaults::schemas().remove(1).object;
    schema["metadata"] = json!({"name": "all"});
    schema["spec"]["matchingPrecedence"] = 5.into();
    schema["spec"]["priorityLevelConfiguration"]["name"] = "busy".into();
    flow.set_schema("all", Some(&schema));
    let lender = flow.clone();
    let lend = tokio::spawn(async move { lender.lend().await });
    // Entitled to two seats; ten run at once because the others are not wanted.
    let held = futures_util::future::join_all((0..10).map(|_| ask(&flow, "a"))).await;
    assert!(held.iter().all(Result::is_ok));
    lend.abort();
}

/// An uncontended request's cost; run it with `--ignored --nocapture` in a release build.
#[tokio::test]
#[ignore = "a measurement"]
async fn uncontended_cost() {
    let flow = Flow::new(600);
    for level in defaults::levels() {
        flow.set_level(level.object["metadata"]["name"].as_str().unwrap(), Some(&level.object));
    }
    for schema in defaults::schemas() {
        flow.set_schema(schema.object["metadata"]["name"].as_str().unwrap(), Some(&schema.object));
    }
    let info = parse(&http::Method::GET, "/api/v1/namespaces/a/pods/b", &Query::default());
    let user = UserInfo::service_account("default", "default");
    let began = Instant::now();
    for _ in 0..1_000_000 {
        let asked = Asked { info: &info, path: "/api/v1/namespaces/a/pods/b", user: &user };
        assert!(flow.admit(asked, |_| Work::ONE).await.is_ok());
    }
    println!("{:?} for a request", began.elapsed() / 1_000_000);
}
