import { isUtf8 } from "node:buffer";
import { isStaticPod, namespaceOf } from "../kube/pod-resources.ts";
import type {
  ConfigMap,
  Container,
  EnvFromSource,
  EnvVar,
  KeySelector,
  Pod,
  ResourceList,
  Secret,
} from "../kube/types.ts";
import { AgentError, hasCode, messageOf } from "../lib/errors.ts";
import { expand } from "../lib/expand.ts";
import { awaiting } from "../volumes/awaits.ts";
import { resourceField } from "../volumes/fields.ts";
import { getOptional } from "../volumes/object-files.ts";
import { findInEnvFile } from "./env-file.ts";
import { fieldRefValue, type PodAddresses } from "./env-fields.ts";
import { type ServiceLookup, serviceEnv } from "./service-env.ts";

/** Where variables get their values from, besides the pod itself. */
export interface EnvContext extends PodAddresses {
  objects: {
    configMap(namespace: string, name: string): Promise<ConfigMap>;
    secret(namespace: string, name: string): Promise<Secret>;
  };
  /** undefined: there is no API server, hence no service variables. */
  services: ServiceLookup | undefined;
  nodeAllocatable: ResourceList;
  /** Feature gate EnvFiles: `fileKeyRef` is known; default: it is. */
  isEnvFileOn?: boolean;
  /** Text of a file inside one of the pod's mounted volumes, for `fileKeyRef`. Rejects if there is none. */
  readVolumeFile(volumeName: string, path: string): Promise<string>;
}

/** The value of a variable. Bytes are what is no UTF-8 text, as the values of Secrets may be. */
export type EnvValue = string | Uint8Array;

export interface EnvEntry {
  key: string;
  value: EnvValue;
}

/**
 * The environment of one container, in the order envFrom, env, services; each name once. Names are taken as they are: the
 * API server has checked those of `env`, and any key of an envFrom object is passed on.
 *
 * Rejects with an `AgentError`: Invalid for what the pod's author must fix (a missing object or key, an unknown field),
 * the lookup's own code while something cannot be asked. Either is a CreateContainerConfigError.
 */
export async function buildEnv(pod: Pod, container: Container, context: EnvContext): Promise<EnvEntry[]> {
  const fromServices = serviceVariables(pod, context.services);
  const read: EnvContext = { ...context, objects: readOnce(context.objects) };
  const env = new Map<string, EnvValue>();
  for (const source of container.envFrom ?? []) await addEnvFrom(env, pod, source, read);
  for (const variable of container.env ?? []) {
    const value = await valueOf(pod, container, variable, read, (name) => env.get(name) ?? fromServices.get(name));
    if (value !== undefined) env.set(variable.name, value);
  }
  for (const [name, value] of fromServices) {
    if (!env.has(name)) env.set(name, value);
  }
  return [...env].map(([key, value]) => ({ key, value }));
}

function serviceVariables(pod: Pod, services: ServiceLookup | undefined): Map<string, string> {
  const { enableServiceLinks } = pod.spec;
  // Whoever lets a pod through fills it in: without it we cannot know which environment was meant.
  if (enableServiceLinks === undefined) {
    throw new AgentError("Invalid", "nil pod.spec.enableServiceLinks encountered, cannot construct envvars");
  }
  if (services === undefined) return new Map();
  if (!services.hasSynced && !isStaticPod(pod)) {
    throw new AgentError("Unavailable", "services have not yet been read at least once, cannot construct envvars");
  }
  return serviceEnv(services, namespaceOf(pod), enableServiceLinks);
}

/** Variables of one container that come from one object come from one version of it, for one request at most. */
function readOnce(objects: EnvContext["objects"]): EnvContext["objects"] {
  const once = <T>(get: (namespace: string, name: string) => Promise<T>) => {
    const found = new Map<string, Promise<T>>();
    return (namespace: string, name: string): Promise<T> => {
      const reading = found.get(name) ?? get(namespace, name); // all are of the pod's namespace
      found.set(name, reading);
      return reading;
    };
  };
  return {
    configMap: once((namespace, name) => objects.configMap(namespace, name)),
    secret: once((namespace, name) => objects.secret(namespace, name)),
  };
}

async function addEnvFrom(
  env: Map<string, EnvValue>,
  pod: Pod,
  source: EnvFromSource,
  context: EnvContext,
): Promise<void> {
  const { prefix = "", configMapRef, secretRef } = source;
  if (configMapRef !== undefined) {
    const found = await lookUp(configMapRef.optional, () =>
      context.objects.configMap(namespaceOf(pod), configMapRef.name ?? ""),
    );
    for (const [key, value] of Object.entries(found?.data ?? {})) env.set(prefix + key, value);
  } else if (secretRef !== undefined) {
    const found = await lookUp(secretRef.optional, () =>
      context.objects.secret(namespaceOf(pod), secretRef.name ?? ""),
    );
    for (const [key, value] of Object.entries(found?.data ?? {})) env.set(prefix + key, decode(value));
  }
}

/** @returns undefined if the variable is left out, because what it refers to is optional and not there */
async function valueOf(
  pod: Pod,
  container: Container,
  { value, valueFrom }: EnvVar,
  context: EnvContext,
  lookup: (name: string) => EnvValue | undefined,
): Promise<EnvValue | undefined> {
  if (value !== undefined && value !== "") return expandValue(value, lookup);
  if (valueFrom?.fieldRef !== undefined) return fieldRefValue(pod, valueFrom.fieldRef, context);
  if (valueFrom?.resourceFieldRef !== undefined) {
    const defaults = { nodeAllocatable: context.nodeAllocatable, podLimits: pod.spec.resources?.limits ?? {} };
    return resourceField(pod, valueFrom.resourceFieldRef, container, defaults);
  }
  if (valueFrom?.configMapKeyRef !== undefined) {
    const ref = valueFrom.configMapKeyRef;
    const found = await lookUp(ref.optional, () => context.objects.configMap(namespaceOf(pod), ref.name ?? ""));
    return found === undefined ? undefined : keyOrThrow(found.data, ref, "ConfigMap", namespaceOf(pod));
  }
  if (valueFrom?.secretKeyRef !== undefined) {
    const ref = valueFrom.secretKeyRef;
    const found = await lookUp(ref.optional, () => context.objects.secret(namespaceOf(pod), ref.name ?? ""));
    const encoded = found === undefined ? undefined : keyOrThrow(found.data, ref, "Secret", namespaceOf(pod));
    return encoded === undefined ? undefined : decode(encoded);
  }
  if (valueFrom?.fileKeyRef !== undefined) return fromFile(valueFrom.fileKeyRef, context);
  return "";
}

/** A missing object is fine if the reference is optional; else it is for the pod's author to fix. */
async function lookUp<T>(optional: boolean | undefined, get: () => Promise<T>): Promise<T | undefined> {
  return await getOptional(optional, get).catch((err: unknown) => {
    throw hasCode(err, "NotFound") ? new AgentError("Invalid", err.message, { cause: err }) : err;
  });
}

function keyOrThrow(
  data: Readonly<Record<string, string>> | undefined,
  ref: KeySelector,
  kind: "ConfigMap" | "Secret",
  namespace: string,
): string | undefined {
  const value = data !== undefined && Object.hasOwn(data, ref.key) ? data[ref.key] : undefined;
  if (value === undefined && ref.optional !== true) {
    const why = `couldn't find key ${ref.key} in ${kind} ${namespace}/${ref.name ?? ""}`;
    throw new AgentError("Invalid", why, awaiting("object"));
  }
  return value;
}

async function fromFile(
  ref: NonNullable<NonNullable<EnvVar["valueFrom"]>["fileKeyRef"]>,
  context: EnvContext,
): Promise<string | undefined> {
  if (context.isEnvFileOn === false) {
    throw new AgentError("Invalid", `fileKeyRef ${ref.key}: feature gate EnvFiles is off on this node`);
  }
  let value: string | undefined;
  try {
    value = findInEnvFile(await context.readVolumeFile(ref.volumeName, ref.path), ref.key);
  } catch (err) {
    // Also for an optional reference: optional speaks of the key, not of the file.
    throw new AgentError(
      "Invalid",
      `couldn't parse env file ${ref.path} of volume "${ref.volumeName}": ${messageOf(err)}`,
      {
        cause: err,
      },
    );
  }
  if (value === undefined && ref.optional !== true) {
    throw new AgentError(
      "Invalid",
      `couldn't find key ${ref.key} in env file ${ref.path} of volume "${ref.volumeName}"`,
    );
  }
  return value;
}

function decode(base64: string): EnvValue {
  return textOrBytes(Buffer.from(base64, "base64"));
}

function textOrBytes(bytes: Buffer): EnvValue {
  return isUtf8(bytes) ? bytes.toString("utf8") : bytes;
}

// One character for each byte: so the text around a value that is no text stays as it is, and the value, too.
function expandValue(value: string, lookup: (name: string) => EnvValue | undefined): EnvValue {
  if (!value.includes("$(")) return expand(value, () => undefined);
  const expanded = expand(Buffer.from(value).toString("latin1"), (name) => {
    const found = lookup(Buffer.from(name, "latin1").toString("utf8"));
    return found === undefined ? undefined : Buffer.from(found).toString("latin1");
  });
  return textOrBytes(Buffer.from(expanded, "latin1"));
}
