import type { Container, Pod, Probe } from "../../../agent/kube/types.ts";
import type { ProbeSpec } from "../../../agent/probes/spec.ts";
import { probesOf } from "../../../agent/probes/spec.ts";
import type { ProbeTarget, SeenContainer } from "../../../agent/probes/port.ts";
import { podOf } from "../pods/support.ts";

/** A probe of one container, with the API's defaults. */
export function specOf(type: ProbeSpec["type"], probe: Probe = {}): ProbeSpec {
  const field = { Startup: "startupProbe", Liveness: "livenessProbe", Readiness: "readinessProbe" }[type];
  const [spec] = probesOf(podWith({ [field]: probe }));
  if (spec === undefined) throw new Error("no probe");
  return spec;
}

/** A pod whose container `app` has these fields; `init` are its init containers. */
export function podWith(app: Partial<Container>, init: Container[] = []): Pod {
  return podOf({ containers: [{ name: "app", image: "image:1", ...app }], initContainers: init });
}

export function seenOf(changes: Partial<SeenContainer> = {}): SeenContainer {
  return {
    name: "app",
    containerID: "app-0",
    isRunning: true,
    startedAtMs: 0,
    wasStarted: false,
    wasReady: false,
    ...changes,
  };
}

export function targetOf(podIP: string, container: Partial<Container> = {}): ProbeTarget {
  const pod = podWith(container);
  return { pod, container: { name: "app", image: "image:1", ...container }, containerID: "app-0", podIP };
}

/** A signal that nobody aborts. */
export const forever = new AbortController().signal;
