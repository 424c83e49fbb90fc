//! The verbs on resources: from a request to the registry and back, the same for every kind.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use meta::{Status, UserInfo};
use registry::read::ListOptions;
use registry::table::{self, IncludeObject};
use registry::{DeleteOptions, FieldValidation, Patch, ResourceDef, Target, WriteOptions, Written};
use serde_json::{Value, json};

use crate::body::{self, Answer};
use crate::listing::{self, Listing};
use crate::negotiate::{self, Shape};
use crate::path::{Query, RequestInfo};
use crate::server::Server;

/// A request for a resource, with everything but its body read.
pub struct Call<'a> {
    /// What the URL says.
    pub info: &'a RequestInfo,
    /// Parameters.
    pub query: &'a Query,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The row that serves it.
    pub def: &'a Arc<ResourceDef>,
}

/// Longest field manager name.
const MANAGER_MAX: usize = 128;

impl<'a> Call<'a> {
    /// What a write is aimed at.
    pub fn target(&self) -> Target<'a> {
        Target {
            def: self.def,
            namespace: if self.def.namespaced { &self.info.namespace } else { "" },
            name: &self.info.name,
            subresource: &self.info.subresource,
        }
    }

    /// What the client gets; refuses what this resource cannot be answered as.
    pub fn wanted(&self) -> Result<negotiate::Wanted, Status> {
        let offer = negotiate::Offer {
            protobuf: self.def.schema.has_numbers(self.def.ty),
            shapes: self.def.is_stored() || self.def.serves("list"),
            stream: self.info.verb == "watch",
        };
        negotiate::wanted(self.headers, offer)
    }

    fn namespace(&self) -> &'a str {
        if self.def.namespaced { &self.info.namespace } else { "" }
    }

    /// The options of a list or watch.
    pub fn list_options(&self) -> Result<ListOptions, Status> {
        let limit = self.query.get("limit");
        let limit = if limit.is_empty() { 0 } else { integer(limit)? };
        Ok(ListOptions {
            label_selector: self.query.get("labelSelector").into(),
            field_selector: self.query.get("fieldSelector").into(),
            resource_version: self.query.get("resourceVersion").into(),
            resource_version_match: self.query.get("resourceVersionMatch").into(),
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token: self.query.get("continue").into(),
            send_initial_events: self
                .query
                .has("sendInitialEvents")
                .then(|| self.query.flag("sendInitialEvents")),
            allow_bookmarks: self.query.flag("allowWatchBookmarks"),
        })
    }

    /// Parameters of a write.
    pub fn write_options(&self) -> Result<WriteOptions<'a>, Status> {
        let kind = match self.info.verb {
            "create" => "CreateOptions",
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            _ => "DeleteOptions",
        };
        let refuse = |e: meta::FieldError| Err(Status::invalid("meta.k8s.io", kind, "", &[e]));
        let asked: Vec<String> = self.query.all("dryRun").map(String::from).collect();
        let dry_run = match asked.iter().all(|d| d == "All") {
            true => !asked.is_empty(),
            false if asked.iter().all(String::is_empty) => false,
            false => return refuse(registry::write::dry_run_error(&asked)),
        };
        let field_validation = match self.query.get("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let allowed = ["", "Ignore", "Strict", "Warn"];
                return refuse(meta::FieldError::not_supported("fieldValidation", &other.into(), &allowed));
            }
        };
        let mut manager = self.query.get("fieldManager").to_owned();
        if manager.len() > MANAGER_MAX {
            return refuse(meta::FieldError::too_long("fieldManager", MANAGER_MAX));
        }
        if manager.chars().any(char::is_control) {
            let why = "should only contain printable characters";
            return refuse(meta::FieldError::invalid("fieldManager", &manager.as_str().into(), why));
        }
        if manager.is_empty() {
            let agent =
                self.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
            manager = agent.split('/').next().unwrap_or_default().chars().take(MANAGER_MAX).collect();
        }
        Ok(WriteOptions {
            user: self.user,
            dry_run,
            field_manager: manager,
            field_validation,
            force: self.query.flag("force"),
        })
    }

    /// How much of the object table rows carry.
    pub fn include(&self) -> IncludeObject {
        match self.query.get("includeObject") {
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            _ => IncludeObject::Metadata,
        }
    }
}

/// A number among the parameters.
fn integer(text: &str) -> Result<i64, Status> {
    text.parse()
        .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
}

impl Server {
    /// Answers one object in the shape the client wants.
    pub fn object_answer(&self, call: &Call<'_>, code: u16, bytes: Bytes) -> Result<Answer, Status> {
        match negotiate::accept(call.headers)? {
            Shape::Table => {
                let object: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
                let now = self.registry.clock().now();
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let row = table::row(call.def, object, call.include(), now);
                let columns = table::column_definitions(call.def);
                Ok(body::json(code, &table::table(Some(columns), vec![row], metadata)))
            }
            Shape::Partial => {
                let value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
                Ok(body::json(code, &table::partial(value)))
            }
            _ => Ok(body::json_bytes(code, bytes)),
        }
    }

    fn written_answer(
        &self,
        call: &Call<'_>,
        written: Written,
        admission: &crate::chain::Admission,
    ) -> Result<Answer, Status> {
        let code = if written.created { 201 } else { 200 };
        let mut answer = self.object_answer(call, code, written.bytes)?;
        body::warn(&mut answer, &written.warnings);
        body::warn(&mut answer, &admission.warnings());
        Ok(answer)
    }

    /// GET of one object.
    pub async fn get(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let version = call.query.get("resourceVersion");
        let object = self.registry.get(call.def, call.namespace(), &call.info.name, version).await?;
        let bytes = registry::convert::shown(call.def, object.bytes.clone()).await?;
        self.object_answer(call, 200, bytes)
    }

    /// GET of a collection.
    pub async fn list(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let list = self.registry.list(call.def, call.namespace(), &call.list_options()?).await?;
        self.list_answer(call, &list).await
    }

    async fn list_answer(&self, call: &Call<'_>, list: &registry::List) -> Result<Answer, Status> {
        let mut metadata = json!({"resourceVersion": list.revision.to_string()});
        if !list.continue_token.is_empty() {
            metadata["continue"] = list.continue_token.as_str().into();
        }
        if let Some(n) = list.remaining {
            metadata["remainingItemCount"] = n.into();
        }
        let stored = list.items.iter().map(|o| o.bytes.clone()).collect();
        let shown = registry::convert::shown_all(call.def, stored).await?;
        let listing = Listing { def: call.def.clone(), metadata, objects: list.items.clone(), shown };
        listing::answer(call.headers, listing, call.include(), self.registry.clock().now())
    }

    /// POST to a collection.
    pub async fn create(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let body = negotiate::body_as_json(call.headers, body)?;
        let options = call.write_options()?;
        let mut warnings = Vec::new();
        let object = registry::decode::decode_body(call.def, &body, options.field_validation, &mut warnings)?;
        let admission = self.admission();
        let written = self.registry.create(call.target(), object, &options, &admission, warnings).await?;
        self.written_answer(call, written, &admission)
    }

    /// PUT of one object or of its status.
    pub async fn update(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let body = negotiate::body_as_json(call.headers, body)?;
        let options = call.write_options()?;
        let mut warnings = Vec::new();
        let object = registry::decode::decode_body(call.def, &body, options.field_validation, &mut warnings)?;
        let admission = self.admission();
        let written = self.registry.update(call.target(), object, &options, &admission, warnings).await?;
        self.written_answer(call, written, &admission)
    }

    /// PATCH of one object or of its status.
    pub async fn patch(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let yaml;
        let patch = match negotiate::content_type(call.headers).as_str() {
            "application/json-patch+json" => Patch::Json(&body),
            "application/merge-patch+json" => Patch::Merge(&body),
            // Nobody knows how custom resources would merge.
            "application/strategic-merge-patch+json" if call.def.custom.is_none() => Patch::Strategic(&body),
            "application/apply-patch+yaml" => {
                yaml = negotiate::yaml_to_json(&body)?;
                Patch::Apply(&yaml)
            }
            _ => {
                let mut accepted = vec!["application/json-patch+json", "application/merge-patch+json"];
                if call.def.custom.is_none() {
                    accepted.push("application/strategic-merge-patch+json");
                }
                accepted.push("application/apply-patch+yaml");
                return Err(negotiate::unsupported(&accepted));
            }
        };
        let options = call.write_options()?;
        if options.force && !matches!(patch, Patch::Apply(_)) {
            let e = meta::FieldError::forbidden("force", "may not be specified for non-apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[e]));
        }
        let admission = self.admission();
        let written = self.registry.patch(call.target(), patch, &options, &admission).await?;
        self.written_answer(call, written, &admission)
    }

    fn delete_options(&self, call: &Call<'_>, body: &Bytes) -> Result<DeleteOptions, Status> {
        let mut options: DeleteOptions = if body.is_empty() {
            DeleteOptions::default()
        } else {
            let json = negotiate::body_as_json(call.headers, body.clone())?;
            serde_json::from_slice(&json)
                .map_err(|e| Status::bad_request(format!("cannot decode DeleteOptions: {e}")))?
        };
        let seconds = call.query.get("gracePeriodSeconds");
        if !seconds.is_empty() {
            options.grace_period_seconds = Some(integer(seconds)?);
        }
        if call.query.has("propagationPolicy") {
            options.propagation_policy = Some(call.query.get("propagationPolicy").into());
        }
        if call.query.has("orphanDependents") {
            options.orphan_dependents = Some(call.query.flag("orphanDependents"));
        }
        Ok(options)
    }

    /// DELETE of one object.
    pub async fn delete(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let delete = self.delete_options(call, &body)?;
        let mut options = call.write_options()?;
        options.dry_run |= delete.dry_run.iter().any(|d| d == "All");
        let admission = self.admission();
        let deleted = self.registry.delete(call.target(), &delete, &options, &admission).await?;
        let mut answer = match deleted {
            registry::delete::Deleted::Pending(bytes) => self.object_answer(call, 200, bytes),
            // Upstream answers with the object for these kinds and with a Status for the rest.
            registry::delete::Deleted::Gone(bytes) if call.def.returns_deleted() => {
                self.object_answer(call, 200, bytes)
            }
            registry::delete::Deleted::Gone(bytes) => {
                let object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                Ok(body::json(200, &success(call.def, &call.info.name, &object["metadata"]["uid"])))
            }
        }?;
        body::warn(&mut answer, &admission.warnings());
        Ok(answer)
    }

    /// DELETE of a collection.
    pub async fn delete_collection(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let delete = self.delete_options(call, &body)?;
        let mut options = call.write_options()?;
        options.dry_run |= delete.dry_run.iter().any(|d| d == "All");
        let admission = self.admission();
        let list = call.list_options()?;
        let deleted =
            self.registry.delete_collection(call.target(), &list, &delete, &options, &admission).await?;
        self.list_answer(call, &deleted).await
    }
}

/// The Status of a deletion that is complete.
fn success(def: &ResourceDef, name: &str, uid: &Value) -> Value {
    let mut details = json!({"name": name, "kind": &*def.resource, "uid": uid});
    if !def.group.is_empty() {
        details["group"] = (*def.group).into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
