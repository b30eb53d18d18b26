/** Everything that can be said about the code without running it. `npm run check -- lint types` runs some parts only. */
import { capture } from "./command.ts";

const node = process.execPath;
const parts: Record<string, string[]> = {
  format: ["node_modules/@biomejs/biome/bin/biome", "format", "--config-path=.ci", "--max-diagnostics=20", "."],
  lint: ["node_modules/oxlint/bin/oxlint", "-c", ".ci/oxlint.json", "--type-aware", ".", ".ci"],
  types: ["node_modules/typescript/bin/tsc", "-p", "."],
  unused: ["node_modules/knip/bin/knip.js", "--config", ".ci/knip.json", "--no-progress"],
  tidy: [
    "node_modules/vitest/vitest.mjs",
    "run",
    "--config",
    "test/vitest.config.ts",
    "--project",
    "unit",
    "test/unit/tidy",
  ],
};

const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => parts[name] === undefined);
if (unknown.length > 0) {
  console.error(`unknown part ${unknown.join(", ")}: there are ${Object.keys(parts).join(", ")}`);
  process.exit(2);
}

const failed: string[] = [];
const selected = Object.entries(parts).filter(([name]) => wanted.length === 0 || wanted.includes(name));
await Promise.all(
  selected.map(async ([name, args]) => {
    const { code, output, seconds } = await capture(node, args);
    console.log(`${code === 0 ? "ok    " : "FAILED"} ${name.padEnd(8)} ${seconds.toFixed(1)} s`);
    if (code === 0) return;
    failed.push(name);
    console.log(output.trimEnd());
  }),
);
console.log(failed.length === 0 ? "check passed" : `check failed: ${failed.join(", ")}`);
process.exitCode = failed.length === 0 ? 0 : 1;
