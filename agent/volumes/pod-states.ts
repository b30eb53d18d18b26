import type { BoundClaim, SetUpResult } from "./kind.ts";

/** A volume of a pod, ready to be given to its containers. */
export interface MountedVolume {
  pluginName: string;
  specName: string;
  bound: BoundClaim | undefined;
  isBlock: boolean;
  /** Absolute; of a block volume the link to its device. */
  hostPath: string;
  isReadOnly: boolean;
  isRelabelled: boolean;
  isRefreshed: boolean;
  supplementalGroup: number | undefined;
}

/** What we know of a pod between calls; all of it can be found again by calling `setUp`. */
export interface PodState {
  /** Plugins of the volumes that containers use, one entry a volume. */
  wanted: readonly string[];
  /** By the volume's name in the pod. */
  mounted: Map<string, MountedVolume>;
  /** Keys of the objects whose content is in the volumes. */
  refs: ReadonlySet<string>;
  /** Tries one after another that did not bring everything up to date. */
  failures: number;
  /** Unix ms at which `setUp` should be called again. */
  nextAtMs: number | undefined;
}

/** The states of all pods that have volumes, found by UID and by the objects that they show. */
export class PodStates {
  readonly #states = new Map<string, PodState>();
  readonly #podsOfRef = new Map<string, Set<string>>();

  get(podUID: string): PodState | undefined {
    return this.#states.get(podUID);
  }

  all(): PodState[] {
    return [...this.#states.values()];
  }

  /** Notes which objects a pod shows. To be called before they are read: a change in between must not be missed. */
  track(podUID: string, refs: ReadonlySet<string>): PodState {
    const state = this.#states.get(podUID) ?? {
      wanted: [],
      mounted: new Map(),
      refs: new Set(),
      failures: 0,
      nextAtMs: undefined,
    };
    this.#states.set(podUID, state);
    this.untrack(podUID);
    for (const key of refs) this.#podsOfRef.set(key, (this.#podsOfRef.get(key) ?? new Set()).add(podUID));
    state.refs = refs;
    return state;
  }

  /** The objects of a pod no longer matter; the rest of its state stays. */
  untrack(podUID: string): void {
    for (const key of this.#states.get(podUID)?.refs ?? []) {
      const podUIDs = this.#podsOfRef.get(key);
      podUIDs?.delete(podUID);
      if (podUIDs?.size === 0) this.#podsOfRef.delete(key);
    }
  }

  podsShowing(ref: string): Iterable<string> {
    return this.#podsOfRef.get(ref) ?? [];
  }

  delete(podUID: string): void {
    this.untrack(podUID);
    this.#states.delete(podUID);
  }
}

/** The state of a volume after its kind has set it up. Pure. */
export function mountedVolume(
  about: Pick<MountedVolume, "pluginName" | "specName" | "bound" | "isBlock">,
  kind: Pick<MountedVolume, "isReadOnly" | "isRelabelled" | "isRefreshed">,
  result: SetUpResult,
): MountedVolume {
  const { bound } = about;
  return {
    ...about,
    hostPath: result.hostPath,
    isReadOnly: result.isReadOnly ?? (kind.isReadOnly || bound?.isReadOnly === true),
    isRelabelled: result.isRelabelled ?? kind.isRelabelled,
    isRefreshed: result.isRefreshed ?? kind.isRefreshed,
    supplementalGroup: result.supplementalGroup ?? (bound === undefined ? undefined : groupOf(bound)),
  };
}

const groupAnnotation = "pv.beta.kubernetes.io/gid";

// What is no group ID is passed over, as kubelet does.
function groupOf({ volume }: BoundClaim): number | undefined {
  const text = volume.metadata.annotations?.[groupAnnotation] ?? "";
  const group = /^\d{1,10}$/.test(text) ? Number(text) : Number.NaN;
  return group <= 0xffff_fffe ? group : undefined;
}
