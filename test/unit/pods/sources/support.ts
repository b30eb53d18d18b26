import type { Pod } from "../../../../agent/kube/types.ts";
import { buildStaticPod, type StaticPodOptions } from "../../../../agent/pods/sources/static-pod.ts";

export const options: StaticPodOptions = { nodeName: "Node-1", refusesReferences: true };

/** A manifest as a person writes it. */
export function manifestOf(spec: object = {}, metadata: object = {}): Pod {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: "web", ...metadata },
    spec: { containers: [{ name: "app", image: "busybox" }], ...spec },
  };
}

/** The same as the node runs it. */
export function staticPodOf(spec: object = {}, metadata: object = {}, origin = "/m/web.yaml"): Pod {
  return buildStaticPod(manifestOf(spec, metadata), { source: "file", origin }, options, 0);
}
