import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { readFileInside, volumeFileBytesMax } from "../../../agent/volumes/volume-file.ts";
import { makeTempDir } from "./support.ts";

test("a file may be as long as the limit, whatever it is cut into", async () => {
  const { dir, cleanUp } = await makeTempDir();
  try {
    const text = "grüße €\n".repeat(volumeFileBytesMax / 16) + "x".repeat(10);
    await writeFile(join(dir, "file"), text);
    expect(await readFileInside(dir, "file")).toBe(text);
    await writeFile(join(dir, "file"), Buffer.alloc(volumeFileBytesMax));
    expect((await readFileInside(dir, "file")).length).toBe(volumeFileBytesMax);
    await writeFile(join(dir, "file"), Buffer.alloc(volumeFileBytesMax + 1));
    await expect(readFileInside(dir, "file")).rejects.toThrow("larger than");
  } finally {
    await cleanUp();
  }
});

test("what counts is what there is to read, not the size that was told before", async () => {
  // The kernel's list of symbols has several megabytes and says that it has none.
  await expect(readFileInside("/proc", "kallsyms")).rejects.toThrow("larger than");
});
