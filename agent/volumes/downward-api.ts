import type { DownwardAPIItem, Pod, ResourceList } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import type { FileContent, Payload } from "./payload.ts";
import { defaultModeDefault, setUpConfigVolume } from "./config-volume.ts";
import { metadataField, resourceField } from "./fields.ts";
import type { VolumeKind } from "./kind.ts";

/** Files that tell a pod about itself. */
export const downwardAPIKind: VolumeKind = {
  field: "downwardAPI",
  pluginName: "kubernetes.io/downward-api",
  isReadOnly: true,
  isRelabelled: true,
  isRefreshed: true,
  setUp(context) {
    const { items = [], defaultMode = defaultModeDefault } = context.volume.downwardAPI ?? {};
    return setUpConfigVolume(context, "Memory", async () => ({
      payload: downwardAPIFiles(context.pod, items, defaultMode, context.deps.nodeAllocatable()),
    }));
  },
};

/** The files of a downwardAPI source. Rejects with code Invalid for fields and resources that cannot be a file. */
export function downwardAPIFiles(
  pod: Pod,
  items: readonly DownwardAPIItem[],
  defaultMode: number,
  nodeAllocatable: ResourceList,
): Payload {
  const payload = new Map<string, FileContent>();
  for (const { path, fieldRef, resourceFieldRef, mode = defaultMode } of items) {
    let text: string | undefined;
    if (fieldRef !== undefined) text = metadataField(pod, fieldRef.fieldPath);
    else if (resourceFieldRef !== undefined) {
      text = resourceField(pod, resourceFieldRef, undefined, { nodeAllocatable });
    }
    if (text === undefined) {
      throw new AgentError(
        "Invalid",
        `downwardAPI file "${path}": unsupported fieldPath "${fieldRef?.fieldPath ?? ""}"`,
      );
    }
    payload.set(path, { data: Buffer.from(text, "utf8"), mode });
  }
  return payload;
}
