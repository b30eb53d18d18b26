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

/** The command of an exec probe: only variables with a literal `value` in the spec count there. */
export function expandProbeCommand(command: readonly string[], container: Pick<Container, "env">): string[] {
  const literals = new Map((container.env ?? []).map(({ name, value }) => [name, value ?? ""]));
  return command.map((word) => expand(word, (name) => literals.get(name)));
}
