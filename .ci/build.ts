/**
 * Builds dist/nodelet: one executable file that holds Node.js, the agent, its libraries and the gRPC interfaces.
 *
 *   agent/main.ts --esbuild--> dist/nodelet.cjs --node--> dist/nodelet.blob --postject--> copy of node = dist/nodelet
 *
 * `--entry FILE` and `--out FILE` build something else the same way (the tests do).
 */
import { chmod, copyFile, mkdir, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { build, type Plugin } from "esbuild";
import protobuf from "protobufjs";
import { capture } from "./command.ts";

const root = new URL("..", import.meta.url).pathname;

// Chosen by measurement (10 000 endpoint slices parsed, kept and rendered): 101 MB resident without them, 78 MB with
// them, same CPU time, same event-loop delay. Smaller semi-spaces or --optimize-for-size save 2-4 MB more and pause
// longer; --lite-mode (63 MB) has no optimising compiler. --heap-growing-percent keeps a burst from leaving its garbage
// behind for good: 109 MB instead of 130 MB resident after 60 pods started at once.
const nodeFlags = ["--max-semi-space-size=2", "--v8-pool-size=1", "--heap-growing-percent=25"];

// How often an executable that does not start is made anew.
const attemptsMax = 3;

// Where Node looks for the blob: fixed by Node's "Single executable applications".
const blobName = "NODE_SEA_BLOB";
const postject = join(root, "node_modules/postject/dist/cli.js");
const fuse = "NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2";

// What libraries bring along and nobody here calls: a megabyte, which the process would hold as text. From dockerode what
// logs in over ssh, builds images and makes streams that the agent's own transport makes; from systeminformation all but the
// machine and its processors (agent/node/hardware.ts).
const uncalled: readonly { importer: RegExp; path: RegExp }[] = [
  {
    importer: /\/node_modules\/(?:dockerode|docker-modem)\//,
    path: /^(?:ssh2|tar-fs|readable-stream|@balena\/dockerignore|\.\/session|\.\/buildkit)$/,
  },
  { importer: /\/node_modules\/systeminformation\/lib\/index\.js$/, path: /^\.\/(?!util$|system$|cpu$)/ },
];

/** Leaves those out of the bundle: what stands in their place says so when it is called. */
const withoutUncalled: Plugin = {
  name: "without-uncalled",
  setup: ({ onResolve, onLoad }) => {
    onResolve({ filter: /.*/ }, ({ path, importer }) =>
      uncalled.some((one) => one.importer.test(importer) && one.path.test(path))
        ? { path, namespace: "uncalled" }
        : undefined,
    );
    onLoad({ filter: /.*/, namespace: "uncalled" }, ({ path }) => {
      const message = JSON.stringify(`${path} is no part of this build`);
      const refuse = `function refuse() { throw new Error(${message}); }`;
      const contents = `module.exports = new Proxy(${refuse}, { get: (target) => target });`;
      return { contents };
    });
  },
};

const { values } = parseArgs({
  options: {
    entry: { type: "string", default: join(root, "agent/main.ts") },
    out: { type: "string", default: join(root, "dist/nodelet") },
  },
});

try {
  await main(resolve(values.entry), resolve(values.out));
} catch (err) {
  console.error(`build failed: ${err instanceof Error ? err.message : String(err)}`);
  process.exitCode = 1;
}

async function main(entry: string, out: string): Promise<void> {
  const startedAt = performance.now();
  const script = `${out}.cjs`;
  await mkdir(dirname(out), { recursive: true });
  const inputs = await bundle(entry, script);
  await toASCII(script);
  await writeFile(`${out}.LICENSES.txt`, await licensesOf(inputs));
  const blob = `${out}.${process.pid}.blob`;
  await makeBlob(script, blob);

  for (let attempt = 1; ; attempt++) {
    await makeExecutable(blob, out);
    // Rarely the file came out damaged and crashed at its start; why is not known. A build hands out none that does.
    const { code, output } = await capture(out, ["--version"]);
    if (output.includes("Code cache data rejected")) throw new Error(`${out} does not take its code cache`);
    if (code === 0) break;
    if (attempt === attemptsMax) throw new Error(`${out} does not start (exit code ${code}): ${output.trim()}`);
    console.log("the executable does not start, making it again");
  }
  await rm(blob);

  const megabytes = ((await stat(out)).size / 1e6).toFixed(0);
  console.log(`built ${out} (${megabytes} MB) in ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
}

/** Puts the blob into a copy of Node.js. */
async function makeExecutable(blob: string, out: string): Promise<void> {
  const unfinished = `${out}.${process.pid}.unfinished`; // two builds at once do not meet
  // The Node.js that runs this script is the one to carry: .ci/node chose it.
  await copyFile(process.execPath, unfinished);
  await chmod(unfinished, 0o755);
  await strip(unfinished);
  await demand(process.execPath, [postject, unfinished, blobName, blob, "--sentinel-fuse", fuse]);
  // postject writes in small pieces, which leaves the page cache in small pieces too, and each start of that file
  // shows some 15 MB more resident memory until it is evicted. A copy has none of this.
  await copyFile(unfinished, `${unfinished}.copy`);
  await rename(`${unfinished}.copy`, out);
  await rm(unfinished);
}

/**
 * Bundles `entry` as one CommonJS script, the only form that Node embeds together with its code cache.
 * Returns the files that went into it, relative to the root.
 */
async function bundle(entry: string, script: string): Promise<string[]> {
  const { metafile } = await build({
    entryPoints: [entry],
    outfile: script,
    absWorkingDir: root,
    bundle: true,
    platform: "node",
    target: "node24",
    format: "cjs",
    // Identifiers stay, so that stack traces of users can be read.
    minifyWhitespace: true,
    minifySyntax: true,
    lineLimit: 160, // Node prints the line of an uncaught error
    sourcemap: "external",
    sourcesContent: false,
    legalComments: "none", // licensesOf() has all of them, in full
    metafile: true,
    plugins: [withoutUncalled],
    banner: { js: `globalThis.NODELET_PROTO_JSON = ${await protoObject()};` },
    define: {
      // Code that reads files beside its source has a build constant instead; this keeps such expressions valid.
      "import.meta.url": JSON.stringify("file:///nodelet"),
    },
    logLevel: "warning",
  });
  return Object.keys(metafile.inputs);
}

/**
 * Escapes what is not ASCII. esbuild does so in strings but not in regular expressions, and a single such character makes
 * V8 keep the whole script with two bytes for each one: 2 MB.
 */
async function toASCII(script: string): Promise<void> {
  const text = await readFile(script, "utf8");
  const escape = (char: string) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`;
  await writeFile(script, text.replaceAll(/[\u0080-\uffff]/g, escape));
}

/** The licenses of Node.js and of every library in the bundle: they ask to be passed on with it. */
async function licensesOf(inputs: string[]): Promise<string> {
  const dirs = inputs.flatMap((path) => /.*node_modules\/(?:@[^/]+\/)?[^/]+(?=\/)/.exec(path)?.[0] ?? []);
  const nodeDir = join(dirname(process.execPath), "..");
  const texts = [...new Set(dirs)]
    .sort()
    .map(async (dir) => [dir.replace(/.*node_modules\//, ""), await licenseIn(dir)]);
  const all = [["Node.js", await licenseIn(nodeDir)], ...(await Promise.all(texts))];
  return all.map(([name, text]) => `==== ${name}\n\n${text}\n`).join("\n");
}

async function licenseIn(dir: string): Promise<string> {
  const names = await readdir(resolve(root, dir));
  const file = names.find((name) => /^licen[cs]e/i.test(name));
  if (file !== undefined) return (await readFile(resolve(root, dir, file), "utf8")).trim();
  const text = await readFile(resolve(root, dir, "package.json"), "utf8").catch(() => "{}");
  const { license } = JSON.parse(text) as { license?: string };
  return license ?? "(the package does not say)";
}

/**
 * The gRPC interfaces in protobufjs' JSON form, by file name, as agent/lib/grpc/proto.ts reads them in a release:
 * the text of an object whose properties are parsed when asked for, and not kept.
 */
async function protoObject(): Promise<string> {
  const dir = join(root, "proto");
  const names = (await readdir(dir)).filter((name) => name.endsWith(".proto")).sort();
  const getters = names.map(async (name) => {
    const text = await readFile(join(dir, name), "utf8");
    const json = JSON.stringify(protobuf.parse(text, { keepCase: true }).root.toJSON());
    return `get ${JSON.stringify(name)}() { return JSON.parse(${JSON.stringify(json)}); }`;
  });
  return `{ ${(await Promise.all(getters)).join(", ")} }`;
}

async function makeBlob(script: string, output: string): Promise<void> {
  const config = `${output}.json`;
  const options = {
    main: script,
    output,
    disableExperimentalSEAWarning: true,
    useCodeCache: true,
    execArgv: nodeFlags,
  };
  await writeFile(config, JSON.stringify(options));
  // The node that will run the blob must make it, with the flags that it will run with: the code cache fits no other.
  await demand(process.execPath, [...nodeFlags, "--experimental-sea-config", config]);
  await rm(config);
}

/** Drops symbols (18 MB) where binutils are installed. */
async function strip(file: string): Promise<void> {
  const { code } = await capture("strip", [file]);
  if (code !== 0) console.log("the executable keeps its symbols: there is no usable strip (Debian: binutils)");
}

async function demand(file: string, args: string[]): Promise<void> {
  const { code, output } = await capture(file, args);
  if (code !== 0) throw new Error(`${file} ${args.join(" ")} exited with ${code}: ${output.trim()}`);
}
