import { quantityMilli, quantityValue } from "../kube/quantity.ts";
import type { Container, Pod, Quantity, ResourceFieldSelector, ResourceList } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";

/**
 * What `fieldRef` and `resourceFieldRef` stand for, as far as environment variables and downwardAPI volumes agree.
 * Fields that only variables know (addresses, node name) are in pods/env-fields.ts.
 */

// Kubernetes' rules for label and annotation keys: an optional DNS subdomain, then up to 63 characters.
const keyNamePattern = /^[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?$/;
const keyPrefixPattern = /^[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*$/;
const keyNameLengthMax = 63;
const keyPrefixLengthMax = 253;

/**
 * The text of a `metadata.…` field path. A label or annotation that is not there is the empty string; a whole map is one
 * sorted `key="value"` line each.
 * @returns undefined if the path is not one of metadata's. Rejects a malformed key with code Invalid.
 */
export function metadataField(pod: Pod, fieldPath: string): string | undefined {
  const { metadata } = pod;
  const subscript = /^metadata\.(labels|annotations)\['(.*)'\]$/s.exec(fieldPath);
  if (subscript !== null) {
    const [, map, key = ""] = subscript;
    if (!isQualifiedName(map === "annotations" ? key.toLowerCase() : key)) {
      throw new AgentError("Invalid", `fieldPath ${fieldPath}: "${key}" is not a valid key of metadata.${map}`);
    }
    const values = map === "labels" ? metadata.labels : metadata.annotations;
    return values !== undefined && Object.hasOwn(values, key) ? (values[key] ?? "") : "";
  }
  switch (fieldPath) {
    case "metadata.name":
      return metadata.name;
    case "metadata.namespace":
      return metadata.namespace ?? "";
    case "metadata.uid":
      return metadata.uid ?? "";
    case "metadata.labels":
      return formatMap(metadata.labels);
    case "metadata.annotations":
      return formatMap(metadata.annotations);
    default:
      return undefined;
  }
}

/** One `key="value"` line per entry, sorted, values quoted as Go quotes strings, no newline at the end. */
export function formatMap(map: Readonly<Record<string, string>> | undefined): string {
  return Object.entries(map ?? {})
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, value]) => `${key}=${quote(value)}`)
    .join("\n");
}

export interface ResourceDefaults {
  /** What an unset cpu, memory or ephemeral-storage limit stands for. */
  nodeAllocatable: ResourceList;
  /** Limits of the pod as a whole, which come before the node's; volumes do not look at them. */
  podLimits?: ResourceList;
}

/**
 * The number that a `resourceFieldRef` stands for, in units of its divisor, rounded up.
 * @param own the container that an empty `containerName` means
 * Rejects with code Invalid if container or resource do not exist.
 */
export function resourceField(
  pod: Pod,
  selector: ResourceFieldSelector,
  own: Container | undefined,
  defaults: ResourceDefaults,
): string {
  const { container, isInit } = findContainer(pod, selector.containerName, own);
  const match = /^(limits|requests)\.(cpu|memory|ephemeral-storage|hugepages-.+)$/.exec(selector.resource);
  if (match === null) {
    throw new AgentError(
      "Invalid",
      `resourceFieldRef of container "${container.name}": unsupported resource "${selector.resource}"`,
    );
  }
  const [, side, name = ""] = match;
  let quantity = container.resources?.[side === "limits" ? "limits" : "requests"]?.[name];
  const hasDefault = side === "limits" && !name.startsWith("hugepages-") && !isInit;
  if (hasDefault && isZero(quantity)) {
    const podLevel = name === "ephemeral-storage" ? undefined : defaults.podLimits?.[name];
    quantity = isZero(podLevel) ? defaults.nodeAllocatable[name] : podLevel;
  }
  return divideUp(name, quantity, selector.divisor);
}

function divideUp(name: string, quantity: Quantity | undefined, divisor: Quantity | undefined): string {
  const by = isZero(divisor) ? "1" : divisor;
  const result =
    name === "cpu" ? quantityMilli(quantity) / quantityMilli(by) : quantityValue(quantity) / quantityValue(by);
  return String(BigInt(Math.ceil(result)));
}

function isZero(quantity: Quantity | undefined): boolean {
  return quantity === undefined || quantityMilli(quantity) === 0;
}

/** A container named explicitly may be an init container; those get no defaults. */
function findContainer(pod: Pod, name: string | undefined, own: Container | undefined) {
  if (name === undefined || name === "") {
    if (own === undefined) throw new AgentError("Invalid", "resourceFieldRef: containerName is required in a volume");
    return { container: own, isInit: false };
  }
  const regular = pod.spec.containers.find((container) => container.name === name);
  if (regular !== undefined) return { container: regular, isInit: false };
  const init = pod.spec.initContainers?.find((container) => container.name === name);
  if (init !== undefined) return { container: init, isInit: true };
  throw new AgentError("Invalid", `resourceFieldRef: container "${name}" not found in pod`);
}

function isQualifiedName(key: string): boolean {
  const parts = key.split("/");
  const name = parts.pop() ?? "";
  const [prefix] = parts;
  if (parts.length > 1 || name.length > keyNameLengthMax || !keyNamePattern.test(name)) return false;
  return prefix === undefined || (prefix.length <= keyPrefixLengthMax && keyPrefixPattern.test(prefix));
}

const shortEscapes: Record<string, string> = {
  "\x07": "\\a",
  "\b": "\\b",
  "\f": "\\f",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
  "\v": "\\v",
  "\\": "\\\\",
  '"': '\\"',
};

// Quotes, backslashes, and what Go does not call printable.
const toEscape = /["\\]|[^\p{L}\p{M}\p{N}\p{P}\p{S} ]/gu;

/** Go's %q, which readers of downwardAPI files parse: printable Unicode stays, the rest is escaped. */
function quote(value: string): string {
  return `"${value.toWellFormed().replace(toEscape, escaped)}"`;
}

function escaped(char: string): string {
  const code = char.codePointAt(0) ?? 0;
  const short = shortEscapes[char];
  if (short !== undefined) return short;
  if (code < 0x20 || code === 0x7f) return `\\x${hex(code, 2)}`;
  return code < 0x1_0000 ? `\\u${hex(code, 4)}` : `\\U${hex(code, 8)}`;
}

function hex(code: number, digits: number): string {
  return code.toString(16).padStart(digits, "0");
}
