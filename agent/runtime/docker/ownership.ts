import { markedAs, nodeOf, readContainer, readSandbox } from "./labels.ts";
import { containerName, isNamed, sandboxName } from "./names.ts";
import type { WireContainer, WireInspect } from "./wire.ts";

/** What a list, a look or an event tells of a container that says whose it is. */
interface Marked {
  labels: Readonly<Record<string, string>>;
  /** With or without the slash that Docker puts before them. */
  names: readonly string[];
}

/**
 * "sandbox" or "container" for what this node made for a pod, `undefined` for everything else on the daemon. Pure.
 *
 * Labels alone do not say it. Another node's agent on the same daemon sets the same ones, but for its name; what an agent made
 * that did not tell it yet counts as ours. And an image that somebody committed from a pod's container has its labels, which
 * `docker run` gives to whatever is made of it: but a container of ours has the name that its labels make.
 */
export function kindOf({ labels, names }: Marked, nodeName: string): "sandbox" | "container" | undefined {
  const kind = markedAs(labels);
  if (kind === undefined || (nodeOf(labels) ?? nodeName) !== nodeName) return undefined;
  const { podName: name, podNamespace: namespace, podUID: uid, attempt } = readSandbox(labels);
  const pod = { name, namespace, uid };
  const own =
    kind === "sandbox"
      ? sandboxName({ ...pod, attempt })
      : containerName({ name: readContainer(labels).name, attempt }, pod);
  return names.some((one) => isNamed(one.replace(/^\//, ""), own)) ? kind : undefined;
}

/** {@link kindOf} of what is in a list. */
export function kindOfListed({ Labels, Names }: WireContainer, nodeName: string): ReturnType<typeof kindOf> {
  return kindOf({ labels: Labels ?? {}, names: Names ?? [] }, nodeName);
}

/** {@link kindOf} of what was inspected. */
export function kindOfInspected(
  { Config, Name = "" }: Pick<WireInspect, "Config" | "Name">,
  nodeName: string,
): ReturnType<typeof kindOf> {
  return kindOf({ labels: Config?.Labels ?? {}, names: [Name] }, nodeName);
}
