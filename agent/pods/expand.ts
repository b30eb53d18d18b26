import type { Container } from "../kube/types.ts";
import { expand } from "../lib/expand.ts";

/** Command and arguments of a container with `$(VAR)` replaced from its final environment. Empty: the image's own. */
export function expandCommand(
  container: Pick<Container, "command" | "args">,
  env: ReadonlyMap<string, string>,
): { command: string[]; args: string[] } {
  const replace = (word: string) => expand(word, (name) => env.get(name));
  return { command: (container.command ?? []).map(replace), args: (container.args ?? []).map(replace) };
}
