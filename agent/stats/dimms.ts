import { join } from "node:path";
import { namesIn } from "../lib/names-in.ts";
import type { FileReader } from "./read.ts";

/** Memory modules of one type, as the firmware names it: `Unbuffered-DDR4`. */
export interface Dimms {
  type: string;
  count: number;
  bytes: number;
}

/** Where the kernel shows memory controllers, if it has a driver for them; virtual machines mostly have none. */
const controllersDir = "/sys/devices/system/edac/mc";
const megabyte = 1 << 20; // the unit of `size`

/** The machine's memory modules by type, in the order of the types' names; none where the kernel does not know them. */
export async function readDimms(reader: Pick<FileReader, "text">, dir = controllersDir): Promise<Dimms[]> {
  const controllers = (await namesIn(dir)).filter((name) => /^mc\d+$/.test(name)).map((name) => join(dir, name));
  const modules = await Promise.all(
    controllers.map(async (controller) => {
      const names = (await namesIn(controller)).filter((name) => /^dimm\d+$/.test(name));
      return names.map((name) => join(controller, name));
    }),
  );
  const byType = new Map<string, Dimms>();
  for (const module of modules.flat()) {
    const [type, size] = await Promise.all([
      reader.text(join(module, "dimm_mem_type")),
      reader.text(join(module, "size")),
    ]);
    const megabytes = Number(size?.trim() ?? "");
    if (type === undefined || !Number.isSafeInteger(megabytes) || megabytes <= 0) continue;
    const known = byType.get(type.trim()) ?? { type: type.trim(), count: 0, bytes: 0 };
    byType.set(known.type, { ...known, count: known.count + 1, bytes: known.bytes + megabytes * megabyte });
  }
  return [...byType.values()].sort((a, b) => (a.type < b.type ? -1 : 1));
}
