/** A CSI driver for tests, in a process of its own: `main.ts DIR`. Ends on SIGTERM, and when its standard input does. */
import { serveCSIDriver } from "./driver.ts";

const [dir] = process.argv.slice(2);
if (dir === undefined) throw new Error("usage: main.ts DIR");
const close = await serveCSIDriver(dir);
const end = () => void close().then(() => process.exit(0));
process.once("SIGTERM", end);
process.stdin.once("end", end).resume();
console.log("ready");
