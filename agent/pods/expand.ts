import type { Container } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import { expand } from "../lib/expand.ts";
import type { EnvValue } from "./env.ts";

/**
 * Command and arguments of a container with `$(VAR)` replaced from its final environment. Empty: the image's own.
 * Throws Invalid for a variable that is no text: the runtime takes words of text only.
 */
export function expandCommand(
  container: Pick<Container, "command" | "args">,
  env: ReadonlyMap<string, EnvValue>,
): { command: string[]; args: string[] } {
  const replace = (word: string) =>
    expand(word, (name) => {
      const value = env.get(name);
      if (value === undefined || typeof value === "string") return value;
      throw new AgentError("Invalid", `command or args use $(${name}), whose value is not UTF-8 text`);
    });
  return { command: (container.command ?? []).map(replace), args: (container.args ?? []).map(replace) };
}
