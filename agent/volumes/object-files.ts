import { namespaceOf } from "../kube/pod-resources.ts";
import type { ConfigMap, KeyToPath, Secret } from "../kube/types.ts";
import { AgentError, hasCode } from "../lib/errors.ts";
import { abortable } from "../lib/abortable.ts";
import { awaiting } from "./awaits.ts";
import type { VolumeContext } from "./kind.ts";
import type { FileContent, Payload } from "./payload.ts";

/** Which ConfigMap or Secret of the pod's namespace, and what of it. */
export interface ObjectFiles {
  name?: string | undefined;
  items?: readonly KeyToPath[] | undefined;
  /** Neither the object nor a key of `items` has to be there. Default: both have to. */
  optional?: boolean | undefined;
}

/** The files of a ConfigMap. Rejects with NotFound without one, with Invalid for a listed key that it lacks. */
export async function configMapPayload(
  source: ObjectFiles,
  defaultMode: number,
  context: VolumeContext,
): Promise<Payload> {
  const { deps, pod, signal } = context;
  const get = async () => await abortable(deps.objects.configMap(namespaceOf(pod), source.name ?? ""), signal);
  const files = configMapFiles(await getOptional(source.optional, get));
  return selectKeys(files, { ...source, defaultMode, what: "config" });
}

/** The files of a Secret. Rejects as {@link configMapPayload} does. */
export async function secretPayload(
  source: ObjectFiles,
  defaultMode: number,
  context: VolumeContext,
): Promise<Payload> {
  const { deps, pod, signal } = context;
  const get = async () => await abortable(deps.objects.secret(namespaceOf(pod), source.name ?? ""), signal);
  const files = secretFiles(await getOptional(source.optional, get));
  return selectKeys(files, { ...source, defaultMode, what: "secret" });
}

/** The values of a ConfigMap by key; binary data wins over text of the same key. */
export function configMapFiles(object: ConfigMap | undefined): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  for (const [key, value] of Object.entries(object?.data ?? {})) files.set(key, Buffer.from(value, "utf8"));
  for (const [key, value] of Object.entries(object?.binaryData ?? {})) files.set(key, Buffer.from(value, "base64"));
  return files;
}

/** The decoded values of a Secret by key. */
export function secretFiles(object: Secret | undefined): Map<string, Uint8Array> {
  return new Map(Object.entries(object?.data ?? {}).map(([key, value]) => [key, Buffer.from(value, "base64")]));
}

/** Chooses keys and names their files; all keys, if none are listed. Throws Invalid for a listed key that is not there. */
export function selectKeys(
  files: ReadonlyMap<string, Uint8Array>,
  {
    items = [],
    optional,
    defaultMode,
    what,
  }: Omit<ObjectFiles, "name"> & { defaultMode: number; what: "config" | "secret" },
): Payload {
  const payload = new Map<string, FileContent>();
  if (items.length === 0) {
    for (const [key, data] of files) payload.set(key, { data, mode: defaultMode });
  }
  for (const { key, path, mode = defaultMode } of items) {
    const data = files.get(key);
    if (data !== undefined) payload.set(path, { data, mode });
    else if (optional !== true) {
      throw new AgentError("Invalid", `references non-existent ${what} key: ${key}`, awaiting("object"));
    }
  }
  return payload;
}

/** What `get` resolves to; undefined if there is no such object and that is allowed. */
export async function getOptional<T>(optional: boolean | undefined, get: () => Promise<T>): Promise<T | undefined> {
  try {
    return await get();
  } catch (err) {
    if (optional === true && hasCode(err, "NotFound")) return undefined;
    throw err;
  }
}
