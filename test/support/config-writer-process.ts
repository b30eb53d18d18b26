import { openDir } from "../../agent/volumes/safe-path.ts";
import { writePayload } from "../../agent/volumes/atomic-writer.ts";

/** Rewrites the volume given as argument for ever, so that somebody can kill it in the middle. Files agree with each other. */

const [, , dir = ""] = process.argv;
for (let round = 0; ; round += 1) {
  const data = Buffer.from(String(round));
  const names = ["a", "b", "deep/c", `only-${round % 3}`];
  const payload = new Map(names.map((name) => [name, { data, mode: 0o644 }]));
  const handle = await openDir(dir);
  await writePayload(handle, payload, { nowMs: Date.now() });
  await handle.close();
  if (round === 1) process.stdout.write("ready");
}
