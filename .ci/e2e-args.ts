/** What `npm run test:e2e` was told. */
export interface E2EArgs {
  /** What is to run the pods; undefined if nothing was said. */
  runtime: string | undefined;
  /** For vitest. */
  rest: string[];
}

const runtimes = ["containerd", "docker"];

/** Takes `--runtime NAME` out of the arguments. Throws for a runtime that the tests cannot start, and for two. */
export function parseE2EArgs(args: readonly string[]): E2EArgs {
  const rest: string[] = [];
  let runtime: string | undefined;
  for (let i = 0; i < args.length; i++) {
    const [flag, inline] = splitFlag(args[i] ?? "");
    if (flag !== "--runtime") {
      rest.push(args[i] ?? "");
      continue;
    }
    if (runtime !== undefined) throw new Error("--runtime is there twice: each run has one");
    runtime = inline ?? args[++i] ?? "";
    if (!runtimes.includes(runtime)) throw new Error(`--runtime "${runtime}": use one of ${runtimes.join(", ")}`);
  }
  return { runtime, rest };
}

function splitFlag(arg: string): [string, string | undefined] {
  const at = arg.indexOf("=");
  return at === -1 ? [arg, undefined] : [arg.slice(0, at), arg.slice(at + 1)];
}
