import type { Awaited } from "../volumes/awaits.ts";
import type { ProbeType, Verdict } from "../probes/port.ts";
import type { EnsuredImage } from "../runtime/images.ts";
import type { CrashBackoff } from "./crash-backoff.ts";
import type { EnsuredVolumeImage } from "./image-volumes.ts";
import type { ResizeProgress } from "./resize/resizes.ts";

/** Something that takes time, done for one pod; see PodAction. Keys come from `actionKey`. */
export type Attempt =
  | { state: "running" }
  /** It failed and is tried again at `retryAtMs` (Unix ms) if it is still wanted then. */
  | {
      state: "failed";
      reason: string;
      message: string;
      retryAtMs: number;
      failures: number;
      /** What has to come before it can succeed, where that is known. */
      awaited?: Awaited;
    };

/** An image that is there, and the name by which the container asked for it. */
export interface ReadyImage extends EnsuredImage {
  wanted: string | undefined;
  /** Images of the image volumes that the container mounts, by volume name; absent: it mounts none. */
  ofVolumes?: ReadonlyMap<string, EnsuredVolumeImage>;
}

/**
 * What the worker of one pod knows that neither the API server nor the runtime does. Lost with the process: every entry
 * can be learnt again.
 */
export interface PodLocal {
  readonly attempts: ReadonlyMap<string, Attempt>;
  /** Images made sure of for the next start of a container, by container name. */
  readonly images: ReadonlyMap<string, ReadyImage>;
  readonly crash: ReadonlyMap<string, CrashBackoff>;
  /** Instances that were stopped to be replaced, by container ID: the next one starts whatever the restart policy says. */
  readonly replaced: ReadonlySet<string>;
  /** When instances ended, by container ID, on the clock that decisions go by; see worker.ts. */
  readonly endedAtMs: ReadonlyMap<string, number>;
  /** Regular containers that were told to have ended for good, by name: they do not run again if the runtime forgets them. */
  readonly finished: ReadonlySet<string>;
  /** Dead instances that have to go, by container ID. */
  readonly condemned: ReadonlySet<string>;
  /** So many dead instances of a container are kept at once; at least 1. */
  readonly deadContainersMax: number;
  /** Sandboxes that were stopped since this agent began. */
  readonly stoppedSandboxes: ReadonlySet<string>;
  /** preStop hooks that have begun, by container ID. */
  readonly hooks: ReadonlyMap<string, HookProgress>;
  /** Why an instance is stopped, as people were told, by container ID. */
  readonly announced: ReadonlyMap<string, string>;
  /** What a probe says of an instance; undefined if there is no such probe. */
  verdict(container: string, containerID: string, type: ProbeType): Verdict | undefined;
  readonly volumes: "unknown" | "ready" | "stale";
  /** Names of volumes that containers use and that were never set up. */
  readonly awaitedVolumes: ReadonlySet<string>;
  /** Set once the pod must stop: deleted, finished, or gone. Never unset. */
  readonly terminating: Termination | undefined;
  /** Torn down since nothing uses them any more. */
  readonly areVolumesGone: boolean;
  /** Volumes, cgroup and sandboxes are gone. */
  readonly isCleanedUp: boolean;
  /** The API server no longer has the object. */
  readonly isGone: boolean;
  /** How far the pod has come to the resources that it was given; undefined if it has none. */
  readonly resize: ResizeProgress | undefined;
  /** What ordinary containers have mounted is let go when they end; see `Runtime.hasPlainContainers`. */
  readonly hasPlainContainers: boolean;
  readonly isRuntimeReady: boolean;
  readonly isNetworkReady: boolean;
}

/** A preStop hook under way (Unix ms of its begin), or over, however it ended. */
export interface HookProgress {
  beganAtMs: number;
  isDone: boolean;
}

export interface Termination {
  sinceMs: number;
  /** Grace of the whole pod, in seconds; only ever shrinks. */
  graceSeconds: number;
}
