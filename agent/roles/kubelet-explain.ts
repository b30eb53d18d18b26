import { mkdir } from "node:fs/promises";
import { hostname } from "node:os";
import type { KubeletSettings } from "../config/load-kubelet.ts";
import { type ExplainServerOptions, serveExplanations } from "../explain/server.ts";
import { createBreather } from "../kube/breathe.ts";
import { messageOf } from "../lib/errors.ts";
import type { HeldPods } from "../pods/manager.ts";
import { TimelineRecorder } from "../pods/timeline-recorder.ts";
import type { Surroundings } from "./cluster.ts";
import { nodeNameOf } from "./kubelet-settings.ts";

/** What `nodelet explain` is answered from. The start fills it in as it gets on. */
export interface Explained {
  readonly timelines: TimelineRecorder;
  /** What the start waits for, for people. */
  stage: string;
  pods?: HeldPods;
}

// As it is prepared with all below it a little later; see prepareRoot.
const rootDirMode = 0o750;

/** Answers `nodelet explain` from now on. First of all that starts: people ask when the start does not get on. */
export async function startExplaining(
  { flags: { rootDir, hostnameOverride } }: KubeletSettings,
  { clock, log, parts }: Surroundings,
): Promise<Explained> {
  const timelines = new TimelineRecorder(clock);
  const explained: Explained = { timelines, stage: "access to the API server (kubeconfig, client certificate)" };
  const options: ExplainServerOptions = {
    rootDir,
    nodeName: nodeNameOf(hostnameOverride, hostname()),
    clock,
    log,
    facts: () => explained.pods?.facts(),
    waitsFor: () => waitsFor(explained),
    findEnded: (namespace, name) => timelines.timelines.findEnded(namespace, name),
    breathe: createBreather(clock),
  };
  await mkdir(rootDir, { recursive: true, mode: rootDirMode }).catch((err: unknown) => {
    log.debug({ dir: rootDir, err: messageOf(err) }, "root directory not made"); // who needs it ends the start for that
  });
  parts.start("explain", (signal) => serveExplanations(options, signal));
  return explained;
}

function waitsFor({ pods, stage }: Explained): string {
  if (pods === undefined) return stage;
  return pods.isComplete() ? "" : "the API server, or another source of pods, to tell what there is";
}
