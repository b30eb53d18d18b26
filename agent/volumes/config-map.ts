import type { ConfigMap, KeyToPath } from "../kube/types.ts";
import { AgentError, hasCode } from "../lib/errors.ts";
import { abortable } from "./abortable.ts";
import type { FileContent, Payload } from "./payload.ts";
import { defaultModeDefault, setUpConfigVolume } from "./config-volume.ts";
import type { VolumeKind } from "./kind.ts";

/** Files from a ConfigMap. */
export const configMapKind: VolumeKind = {
  field: "configMap",
  pluginName: "kubernetes.io/configmap",
  isReadOnly: true,
  isRelabelled: true,
  isRefreshed: true,
  setUp(context) {
    const { name = "", items, optional = false, defaultMode = defaultModeDefault } = context.volume.configMap ?? {};
    return setUpConfigVolume(context, "", async () => {
      const namespace = context.pod.metadata.namespace ?? "default";
      const object = await getOptional(optional, () =>
        abortable(context.deps.objects.configMap(namespace, name), context.signal),
      );
      return { payload: selectKeys(configMapFiles(object), { items, defaultMode, optional, what: "config" }) };
    });
  },
};

/** The values of a ConfigMap by key; binary data wins over text of the same key. */
export function configMapFiles(object: ConfigMap | undefined): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  for (const [key, value] of Object.entries(object?.data ?? {})) files.set(key, Buffer.from(value, "utf8"));
  for (const [key, value] of Object.entries(object?.binaryData ?? {})) files.set(key, Buffer.from(value, "base64"));
  return files;
}

export interface KeySelection {
  /** Empty or absent: every key under its own name. */
  items: readonly KeyToPath[] | undefined;
  defaultMode: number;
  /** Keys that are not there are skipped. */
  optional: boolean;
  /** "config" or "secret": names the kind of key in errors. */
  what: "config" | "secret";
}

/** Chooses keys and names their files. Rejects with code Invalid for a listed key that is not there. */
export function selectKeys(files: ReadonlyMap<string, Uint8Array>, selection: KeySelection): Payload {
  const { items = [], defaultMode, optional, what } = selection;
  const payload = new Map<string, FileContent>();
  if (items.length === 0) {
    for (const [key, data] of files) payload.set(key, { data, mode: defaultMode });
  }
  for (const { key, path, mode = defaultMode } of items) {
    const data = files.get(key);
    if (data !== undefined) payload.set(path, { data, mode });
    else if (!optional) throw new AgentError("Invalid", `references non-existent ${what} key: ${key}`);
  }
  return payload;
}

/** What `get` resolves to; undefined if there is no such object and that is allowed. */
export async function getOptional<T>(optional: boolean, get: () => Promise<T>): Promise<T | undefined> {
  try {
    return await get();
  } catch (err) {
    if (optional && hasCode(err, "NotFound")) return undefined;
    throw err;
  }
}
