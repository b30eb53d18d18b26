import type { Container, Pod } from "../../../agent/kube/types.ts";
import { parseQuantity } from "../../../agent/kube/quantity.ts";
import { jsonEqual } from "./json.ts";
import {
  ApiError,
  duplicate,
  type FieldError,
  forbiddenField,
  invalidValue,
  notSupported,
  required,
} from "./status.ts";
import type { ApiObject, ResourceType } from "./types.ts";

export const labelForm = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;
const subdomainForm = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const label1035Form = /^[a-z]([-a-z0-9]*[a-z0-9])?$/;
const qualifiedForm = /^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$/;
const environmentForm = /^[-._a-zA-Z][-._a-zA-Z0-9]*$|^[ -<>-~]+$/;

export const labelText =
  "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with " +
  "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const subdomainText =
  "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and " +
  "end with an alphanumeric character (e.g. 'example.com', regex used for validation is " +
  "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const label1035Text =
  "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and " +
  "end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
export const portText = "must be between 1 and 65535, inclusive";
const qualifiedText =
  "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric " +
  "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is " +
  "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const labelValueText =
  "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end " +
  "with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is " +
  "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/** Wrong fields of any object's metadata. */
export function validateMetadata(resource: ResourceType, object: ApiObject): FieldError[] {
  const { name, labels = {} } = object.metadata;
  const errors: FieldError[] = [];
  if (name === "") {
    errors.push(required("metadata.name", "name or generateName is required"));
  } else {
    const why = nameProblem(resource, name);
    if (why !== undefined) errors.push(invalidValue("metadata.name", name, why));
  }
  for (const [key, value] of Object.entries(labels)) {
    const short = key.slice(key.indexOf("/") + 1);
    if (!qualifiedForm.test(short) || short.length > 63) {
      errors.push(invalidValue("metadata.labels", key, qualifiedText));
    }
    if (typeof value !== "string" || value.length > 63 || (value !== "" && !qualifiedForm.test(value))) {
      errors.push(invalidValue("metadata.labels", value, labelValueText));
    }
  }
  return errors;
}

// Kinds whose names may hold anything a path segment can.
const freeNames = new Set(["certificatesigningrequests", "clustertrustbundles", "csinodes"]);

function nameProblem({ plural }: ResourceType, name: string): string | undefined {
  if (plural === "namespaces") {
    if (name.length > 63) return "must be no more than 63 characters";
    return labelForm.test(name) ? undefined : labelText;
  }
  if (plural === "services") {
    if (name.length > 63) return "must be no more than 63 characters";
    return label1035Form.test(name) ? undefined : label1035Text;
  }
  if (freeNames.has(plural)) return /[/%]|^\.{1,2}$/.test(name) ? "may not contain '/' or '%'" : undefined;
  if (name.length > 253) return "must be no more than 253 characters";
  return subdomainForm.test(name) ? undefined : subdomainText;
}

/** Wrong fields of a pod, after defaults. */
export function validatePod(pod: Pod): FieldError[] {
  const { spec } = pod;
  const errors: FieldError[] = [];
  if (!Array.isArray(spec.containers) || spec.containers.length === 0) errors.push(required("spec.containers"));
  const names = new Set<string>();
  const volumes = new Set<string>();
  for (const [i, volume] of (spec.volumes ?? []).entries()) {
    const field = `spec.volumes[${i}].name`;
    if (volume.name === undefined || volume.name === "") {
      errors.push(required(field));
    } else if (!labelForm.test(volume.name)) {
      errors.push(invalidValue(field, volume.name, labelText));
    }
    if (volumes.has(volume.name)) errors.push(duplicate(field, volume.name));
    volumes.add(volume.name);
  }
  for (const field of ["initContainers", "containers"] as const) {
    for (const [i, container] of (spec[field] ?? []).entries()) {
      errors.push(...validateContainer(container, `spec.${field}[${i}]`, names, volumes));
    }
  }
  const oneOf = (field: string, value: string | undefined, allowed: string[]) => {
    if (value !== undefined && !allowed.includes(value)) errors.push(notSupported(field, value, allowed));
  };
  oneOf("spec.restartPolicy", spec.restartPolicy, ["Always", "OnFailure", "Never"]);
  oneOf("spec.dnsPolicy", spec.dnsPolicy, ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
  if (spec.activeDeadlineSeconds !== undefined && !(spec.activeDeadlineSeconds >= 1)) {
    errors.push(
      invalidValue(
        "spec.activeDeadlineSeconds",
        spec.activeDeadlineSeconds,
        "must be between 1 and 2147483647, inclusive",
      ),
    );
  }
  if (spec.hostname !== undefined && !labelForm.test(spec.hostname)) {
    errors.push(invalidValue("spec.hostname", spec.hostname, labelText));
  }
  return errors;
}

function validateContainer(
  container: Container,
  path: string,
  names: Set<string>,
  volumes: ReadonlySet<string>,
): FieldError[] {
  const errors: FieldError[] = [];
  const { name, image } = container;
  if (name === undefined || name === "") {
    errors.push(required(`${path}.name`));
  } else if (!labelForm.test(name)) {
    errors.push(invalidValue(`${path}.name`, name, labelText));
  } else if (names.has(name)) {
    errors.push(duplicate(`${path}.name`, name));
  }
  names.add(name);
  if (image === undefined || image === "") {
    errors.push(required(`${path}.image`));
  } else if (image !== image.trim()) {
    errors.push(invalidValue(`${path}.image`, image, "must not have leading or trailing whitespace"));
  }
  const policy = container.imagePullPolicy ?? "Always";
  if (!["Always", "IfNotPresent", "Never"].includes(policy)) {
    errors.push(notSupported(`${path}.imagePullPolicy`, policy, ["Always", "IfNotPresent", "Never"]));
  }
  for (const [i, port] of (container.ports ?? []).entries()) {
    const field = `${path}.ports[${i}]`;
    if (port.containerPort === undefined) {
      errors.push(required(`${field}.containerPort`));
    } else if (!isPort(port.containerPort)) {
      errors.push(invalidValue(`${field}.containerPort`, port.containerPort, portText));
    }
    if (port.hostPort !== undefined && port.hostPort !== 0 && !isPort(port.hostPort)) {
      errors.push(invalidValue(`${field}.hostPort`, port.hostPort, portText));
    }
    if (!["TCP", "UDP", "SCTP"].includes(port.protocol ?? "TCP")) {
      errors.push(notSupported(`${field}.protocol`, port.protocol, ["SCTP", "TCP", "UDP"]));
    }
  }
  for (const [i, variable] of (container.env ?? []).entries()) {
    const field = `${path}.env[${i}].name`;
    if (variable.name === undefined || variable.name === "") {
      errors.push(required(field));
    } else if (!environmentForm.test(variable.name)) {
      errors.push(
        invalidValue(
          field,
          variable.name,
          "a valid environment variable name must consist only of printable ASCII characters other than '='",
        ),
      );
    }
  }
  for (const [i, mount] of (container.volumeMounts ?? []).entries()) {
    const field = `${path}.volumeMounts[${i}]`;
    if (mount.mountPath === undefined || mount.mountPath === "") errors.push(required(`${field}.mountPath`));
    if (mount.name === undefined || mount.name === "") {
      errors.push(required(`${field}.name`));
    } else if (!volumes.has(mount.name)) {
      errors.push({
        field: `${field}.name`,
        reason: "FieldValueNotFound",
        message: `Not found: ${JSON.stringify(mount.name)}`,
      });
    }
  }
  for (const part of ["requests", "limits"] as const) {
    for (const [resource, quantity] of Object.entries(container.resources?.[part] ?? {})) {
      if (parseQuantity(quantity) !== undefined) continue;
      throw new ApiError(
        400,
        "BadRequest",
        `Pod in version "v1" cannot be handled as a Pod: quantities must match the regular expression ` +
          `'^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$' (${path}.resources.${part}.${resource})`,
      );
    }
  }
  for (const [resource, limit] of Object.entries(container.resources?.limits ?? {})) {
    const request = container.resources?.requests?.[resource];
    if (request === undefined || (parseQuantity(request) ?? 0n) <= (parseQuantity(limit) ?? 0n)) continue;
    errors.push(
      invalidValue(
        `${path}.resources.requests`,
        String(request),
        `must be less than or equal to ${resource} limit of ${limit}`,
      ),
    );
  }
  return errors;
}

/** True for a usable port number. */
export function isPort(value: unknown): boolean {
  return typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= 65_535;
}

/** What an ordinary update may not change about a pod. */
export function validatePodUpdate(next: Pod, old: Pod): FieldError[] {
  const masked = structuredClone(next.spec);
  for (const field of ["containers", "initContainers"] as const) {
    const now = masked[field] ?? [];
    const before = old.spec[field] ?? [];
    if (now.length !== before.length) {
      return [forbiddenField(`spec.${field}`, "pod updates may not add or remove containers")];
    }
    for (const [i, container] of now.entries()) {
      const image = before[i]?.image;
      if (image !== undefined) container.image = image;
    }
  }
  restore(masked, old.spec, "activeDeadlineSeconds");
  const keptTolerations = (old.spec.tolerations ?? []).every((t) =>
    (next.spec.tolerations ?? []).some((n) =>
      jsonEqual({ ...n, tolerationSeconds: 0 }, { ...t, tolerationSeconds: 0 }),
    ),
  );
  if (keptTolerations) restore(masked, old.spec, "tolerations");
  if (next.spec.terminationGracePeriodSeconds === 1 && (old.spec.terminationGracePeriodSeconds ?? 0) < 0) {
    restore(masked, old.spec, "terminationGracePeriodSeconds");
  }
  if (jsonEqual(masked, old.spec)) return [];
  return [
    forbiddenField(
      "spec",
      "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`," +
        "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)," +
        "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
    ),
  ];
}

function restore<T extends object, K extends keyof T>(target: T, from: T, field: K): void {
  if (from[field] === undefined) {
    delete target[field];
  } else {
    target[field] = from[field];
  }
}
