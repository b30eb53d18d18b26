import type { Pod, ResourceList, Volume } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import type { ObjectSource } from "./port.ts";
import type { TokenManager } from "./tokens.ts";

/** What volume kinds need from outside. */
export interface VolumeDeps {
  objects: Pick<ObjectSource, "configMap" | "secret">;
  tokens: Pick<TokenManager, "token">;
  clock: Clock;
  /** The node's allocatable resources as last reported; empty while unknown. */
  nodeAllocatable(): ResourceList;
  /** True if this kernel's tmpfs takes `noswap`. */
  tmpfsTakesNoswap(): Promise<boolean>;
}

/** One volume of one pod, about to be set up. */
export interface VolumeContext {
  pod: Pod;
  volume: Volume;
  /** ROOT/pods/UID, resolved. */
  podDir: string;
  /** ROOT/pods/UID/volumes/PLUGIN/NAME, for the kinds that have a directory there. */
  dir: string;
  deps: VolumeDeps;
  signal: AbortSignal;
}

/** A volume that is ready. */
export interface SetUpResult {
  /** What containers are given. */
  hostPath: string;
  /** Unix ms at which the content should be written anew; undefined: when something changes. */
  refreshAtMs?: number;
}

/** One kind of volume: how it is recognised, what containers may do with it, and how it gets there. */
export interface VolumeKind {
  /** Its field in `spec.volumes[]`. */
  readonly field: string;
  readonly pluginName: string;
  /** Containers never may write. */
  readonly isReadOnly: boolean;
  /** Containers' SELinux label may be put on it. */
  readonly isRelabelled: boolean;
  /** Its content follows other objects: set up again at each call. */
  readonly isRefreshed: boolean;
  /** Idempotent. Rejects with an `AgentError` that says why in one line, without the volume's name. */
  setUp(context: VolumeContext): Promise<SetUpResult>;
}

/** `kubernetes.io/empty-dir` → `kubernetes.io~empty-dir`: the plugin's name as a directory. */
export function pluginDirName(pluginName: string): string {
  return pluginName.replaceAll("/", "~");
}
