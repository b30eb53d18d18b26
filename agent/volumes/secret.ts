import type { Secret } from "../kube/types.ts";
import { abortable } from "./abortable.ts";
import { getOptional, selectKeys } from "./config-map.ts";
import { defaultModeDefault, setUpConfigVolume } from "./config-volume.ts";
import type { VolumeKind } from "./kind.ts";

/** Files from a Secret, kept in memory. */
export const secretKind: VolumeKind = {
  field: "secret",
  pluginName: "kubernetes.io/secret",
  isReadOnly: true,
  isRelabelled: true,
  isRefreshed: true,
  setUp(context) {
    const { secretName = "", items, optional = false, defaultMode = defaultModeDefault } = context.volume.secret ?? {};
    return setUpConfigVolume(context, "Memory", async () => {
      const namespace = context.pod.metadata.namespace ?? "default";
      const object = await getOptional(optional, () =>
        abortable(context.deps.objects.secret(namespace, secretName), context.signal),
      );
      return { payload: selectKeys(secretFiles(object), { items, defaultMode, optional, what: "secret" }) };
    });
  },
};

/** The decoded values of a Secret by key. */
export function secretFiles(object: Secret | undefined): Map<string, Uint8Array> {
  return new Map(Object.entries(object?.data ?? {}).map(([key, value]) => [key, Buffer.from(value, "base64")]));
}
