import { isObject, type JsonObject, objectAt, objectsAt } from "./json.ts";
import { badRequest } from "./status.ts";
import type { ApiObject } from "./types.ts";

/**
 * Refuses JSON whose shape the typed code could not read, as the real server's decoder does: 400 with the path.
 */
export function checkShape(kind: string, object: ApiObject): void {
  const wrong = (path: string, want: string) =>
    badRequest(
      `${kind} in version "${object.apiVersion.split("/").at(-1)}" cannot be handled as a ${kind}: ` +
        `json: cannot unmarshal ${path} into a field of type ${want}`,
    );
  const checkMap = (value: unknown, path: string) => {
    if (value === undefined || value === null) return;
    if (!isObject(value)) throw wrong(path, "map[string]string");
    for (const [key, entry] of Object.entries(value)) {
      if (typeof entry !== "string") throw wrong(`${path}.${key}`, "string");
    }
  };
  checkMap(object.metadata.labels, "metadata.labels");
  checkMap(object.metadata.annotations, "metadata.annotations");
  for (const part of ["spec", "status"]) {
    const value = object[part];
    if (value !== undefined && !isObject(value)) throw wrong(part, "object");
  }
  if (kind === "ConfigMap") checkMap(object["data"], "data");
  const checkList = (holder: JsonObject, path: string, field: string) => {
    const value = holder[field];
    if (value === undefined) return;
    if (!Array.isArray(value) || !value.every(isObject)) throw wrong(`${path}.${field}`, "list of objects");
  };
  const spec = objectAt(object, "spec");
  if (kind === "Pod") {
    if (object["spec"] === undefined) object["spec"] = {};
    for (const field of ["containers", "initContainers", "ephemeralContainers", "volumes", "tolerations"]) {
      checkList(spec, "spec", field);
    }
    for (const field of ["containers", "initContainers", "ephemeralContainers"]) {
      for (const [i, container] of objectsAt(spec, field).entries()) {
        const path = `spec.${field}[${i}]`;
        for (const list of ["ports", "env", "envFrom", "volumeMounts", "volumeDevices"]) {
          checkList(container, path, list);
        }
        for (const object of ["resources", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"]) {
          if (container[object] !== undefined && !isObject(container[object])) {
            throw wrong(`${path}.${object}`, "object");
          }
        }
        for (const [j, variable] of objectsAt(container, "env").entries()) {
          if (variable["value"] !== undefined && typeof variable["value"] !== "string") {
            throw wrong(`${path}.env[${j}].value`, "string");
          }
        }
        for (const list of ["command", "args"]) {
          const value = container[list];
          if (value === undefined) continue;
          if (!Array.isArray(value) || !value.every((v) => typeof v === "string")) {
            throw wrong(`${path}.${list}`, "[]string");
          }
        }
      }
    }
  }
  if (kind === "Service") checkList(spec, "spec", "ports");
}
