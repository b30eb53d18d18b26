import { kubeletFlagFields } from "./kubelet-flags.ts";
import { ConfigError } from "./problems.ts";
import { outputFormat, readWordArguments } from "./word-arguments.ts";

/** `nodelet explain pod` or `nodelet pods`: asks an agent that runs on this machine. */
export type InspectCommand =
  | { kind: "explain"; rootDir: string; namespace: string; name: string; output: "text" | "json" }
  /** `namespace` "": all. */
  | { kind: "pods"; rootDir: string; namespace: string; output: "text" | "json" };

/** False where people have asked programs for plain text (no-color.org, or a terminal that can do nothing else). */
export function wantsColour(env: NodeJS.ProcessEnv = process.env): boolean {
  return (env["NO_COLOR"] ?? "") === "" && env["TERM"] !== "dumb";
}

const rootDirDefault = kubeletFlagFields.rootDir.default ?? "";

/** `nodelet explain --help` and `nodelet pods --help`. */
export const inspectHelp = `Asks the nodelet that runs on this machine what its pods do, and why. Needs root.

Usage:
  nodelet explain pod NAMESPACE/NAME   what happened to a pod, what it waits for, and why
  nodelet pods                         a line for each pod: its state, and what it waits for

Flags:
  -n, --namespace string   the pod's namespace (default "default"); nodelet pods: only this one's
  -o, --output string      text or json (default text)
      --root-dir string    root directory that the agent was started with (default ${rootDirDefault})
  -h, --help               this text

The exit code is 0 if there is an answer, 1 if the pod is not on this node or no agent answers.
`;

const flags = {
  namespace: { type: "string", short: "n" },
  output: { type: "string", short: "o" },
  "root-dir": { type: "string" },
  help: { type: "boolean", short: "h" },
} as const;

/**
 * Reads the arguments of `nodelet explain` and `nodelet pods`.
 *
 * @param args arguments after the word
 * @returns "help" if that is what they ask for
 * @throws ConfigError
 */
export function parseInspectCommand(word: "explain" | "pods", args: readonly string[]): InspectCommand | "help" {
  const { values, positionals } = readWordArguments(word, args, flags);
  if (values.help === true) return "help";
  const output = outputFormat(values.output);
  const rootDir = values["root-dir"] ?? rootDirDefault;
  if (word === "pods") {
    const [extra] = positionals;
    if (extra !== undefined) throw new ConfigError([`nodelet pods takes no ${extra}: try nodelet explain pod`]);
    return { kind: "pods", rootDir, namespace: values.namespace ?? "", output };
  }
  return { kind: "explain", rootDir, ...podOf(positionals, values.namespace), output };
}

const usage = "say which pod: nodelet explain pod NAMESPACE/NAME";

// `pod ns/name`, `pod name -n ns`, `pod/name`.
function podOf(positionals: readonly string[], given: string | undefined): { namespace: string; name: string } {
  const [first = "", ...rest] = positionals;
  const words = first.startsWith("pod/")
    ? [first.slice("pod/".length), ...rest]
    : ["pod", "pods", "po"].includes(first)
      ? rest
      : [];
  const [word = ""] = words;
  const [left = "", right, ...more] = word.split("/");
  const name = right ?? left;
  const namespace = right === undefined ? (given ?? "default") : left;
  if (words.length !== 1 || name === "" || namespace === "" || more.length > 0) throw new ConfigError([usage]);
  if (given !== undefined && given !== namespace) {
    throw new ConfigError([`--namespace ${given} and the pod's ${word} do not agree`]);
  }
  return { namespace, name };
}
