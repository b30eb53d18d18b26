import { isGateOn } from "../config/feature-gates.ts";
import type { KubeletSettings } from "../config/load-kubelet.ts";
import type { EventRecorder, Store } from "../kube/port.ts";
import { pods } from "../kube/resources.ts";
import type { Node } from "../kube/types.ts";
import { ignoreAbort } from "../lib/loop.ts";
import { podReference } from "../pods/names.ts";
import { runFileSource } from "../pods/sources/file-source.ts";
import { runHTTPSource } from "../pods/sources/http-source.ts";
import { type PodGates, withoutGated } from "../pods/sources/gated.ts";
import { PodSources } from "../pods/sources/pod-sources.ts";
import type { PodSourceName } from "../pods/sources/static-pod.ts";
import type { Cluster, Surroundings } from "./cluster.ts";

export interface StartSourcesOptions {
  settings: KubeletSettings;
  nodeName: string;
  recorder: EventRecorder;
  /** undefined: there is no API server. */
  cluster: Cluster | undefined;
  ownNode: Store<Node>;
}

/** Starts to read the node's pods from wherever the configuration says that there are some. */
export function startSources(options: StartSourcesOptions, { clock, log, parts, stop }: Surroundings): PodSources {
  const { settings, nodeName, recorder, cluster, ownNode } = options;
  const { staticPodPath, fileCheckFrequency, staticPodURL, staticPodURLHeader, httpCheckFrequency, featureGates } =
    settings.config;
  const names: PodSourceName[] = [
    ...(cluster === undefined ? [] : (["api"] as const)),
    ...(staticPodPath === "" ? [] : (["file"] as const)),
    ...(staticPodURL === "" ? [] : (["http"] as const)),
  ];
  const reason = "FailedValidation";
  const gates: PodGates = {
    HostnameOverride: isGateOn(featureGates, "HostnameOverride"),
    ContainerRestartRules: isGateOn(featureGates, "ContainerRestartRules"),
    ContainerStopSignals: isGateOn(featureGates, "ContainerStopSignals"),
  };
  const sources = new PodSources({
    clock,
    sources: names,
    adapt: (pod) => withoutGated(pod, gates),
    onDuplicate: (pod, message) => {
      log.warn({ pod: podReference(pod) }, message);
      recorder.event(podReference(pod), "Warning", reason, message);
    },
  });
  const shared = {
    nodeName,
    refusesReferences: isGateOn(featureGates, "PreventStaticPodAPIReferences"),
    // A manifest that cannot be read is no pod yet: the Node is where people look.
    onProblem: (message: string) =>
      recorder.event({ apiVersion: "v1", kind: "Node", name: nodeName, uid: nodeName }, "Warning", reason, message),
    clock,
    log,
  };
  if (staticPodPath !== "") {
    const deliver = sources.receiver("file");
    const file = { ...shared, path: staticPodPath, checkMs: fileCheckFrequency, deliver };
    parts.start("static pod files", (signal) => runFileSource(file, signal));
  }
  if (staticPodURL !== "") {
    const deliver = sources.receiver("http");
    const http = { ...shared, url: staticPodURL, headers: staticPodURLHeader, checkMs: httpCheckFrequency, deliver };
    parts.start("static pod URL", (signal) => runHTTPSource(http, signal));
  }
  if (cluster === undefined) return sources;
  const follow = async () => {
    // Only once the Node is known: the admission of pods looks at its labels. Static pods do not wait for that.
    await ownNode.synced(stop);
    const store = cluster.follow(pods, { fieldSelector: `spec.nodeName=${nodeName}` });
    parts.defer("pods of the API server", sources.follow(store));
  };
  follow().catch(ignoreAbort); // the agent ends
  return sources;
}
