import { defaultModeDefault, setUpConfigVolume } from "./config-volume.ts";
import type { VolumeKind } from "./kind.ts";
import { secretPayload } from "./object-files.ts";

/** Files from a Secret, kept in memory. */
export const secretKind: VolumeKind = {
  field: "secret",
  pluginName: "kubernetes.io/secret",
  isReadOnly: true,
  isRelabelled: true,
  isRefreshed: true,
  setUp(context) {
    const { secretName: name, defaultMode = defaultModeDefault, ...source } = context.volume.secret ?? {};
    return setUpConfigVolume(context, "Memory", async () => ({
      payload: await secretPayload({ name, ...source }, defaultMode, context),
    }));
  },
};
