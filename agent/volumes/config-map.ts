import { defaultModeDefault, setUpConfigVolume } from "./config-volume.ts";
import type { VolumeKind } from "./kind.ts";
import { configMapPayload } from "./object-files.ts";

/** Files from a ConfigMap. */
export const configMapKind: VolumeKind = {
  field: "configMap",
  pluginName: "kubernetes.io/configmap",
  isReadOnly: true,
  isRelabelled: true,
  isRefreshed: true,
  setUp(context) {
    const { defaultMode = defaultModeDefault, ...source } = context.volume.configMap ?? {};
    return setUpConfigVolume(context, "", async () => ({
      payload: await configMapPayload(source, defaultMode, context),
    }));
  },
};
