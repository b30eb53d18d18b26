import type { Container, Pod } from "../../kube/types.ts";
import type { ResizeStates } from "./conditions.ts";
import type { ResizeProgress } from "./resizes.ts";

/** Resizes, as those who run a pod see them; see resizes.ts. */
export interface PodResizes {
  /** With the resources that it was given: what it runs with. */
  given(pod: Pod): Pod;
  /** How far the pod has come to what it was given; undefined for a pod without resources. */
  progress(podUID: string): ResizeProgress | undefined;
  states(podUID: string): ResizeStates;
  observed(pod: Pod, isDue: boolean): void;
  cgroupMade(pod: Pod): void;
  starting(pod: Pod, container: Container): Promise<void>;
  completed(pod: Pod): Promise<void>;
  failed(pod: Pod, message: string): void;
  ended(podUID: string): void;
}
