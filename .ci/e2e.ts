/**
 * `npm run test:e2e`: the e2e suite on a cluster with `--runtime containerd` or docker, or what the variable TEST_RUNTIME says;
 * the rest is vitest's.
 */
import { show } from "./command.ts";
import { type E2EArgs, parseE2EArgs } from "./e2e-args.ts";

process.exitCode = await main();

async function main(): Promise<number> {
  let args: E2EArgs;
  try {
    args = parseE2EArgs(process.argv.slice(2));
  } catch (err) {
    console.error(err instanceof Error ? err.message : String(err));
    return 2;
  }
  const suite = ["node_modules/vitest/vitest.mjs", "run", "--config", "test/vitest.config.ts", "--project", "e2e"];
  const env = args.runtime === undefined ? {} : { TEST_RUNTIME: args.runtime };
  const { code } = await show(process.execPath, [...suite, ...args.rest], env);
  return code;
}
