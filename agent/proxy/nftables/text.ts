import type { Family } from "../ip.ts";
import { countChain, sharedEndpoints, sharedSets, tableName } from "./fixed.ts";
import { familyWords } from "./render.ts";

// Elements of one command. Lines of this length are read by people, and quickly by nft.
const elementsPerCommandMax = 200;
// nft's own limit (NFTNL_UDATA_COMMENT_MAXLEN). Names of a namespace, a service and a port together may be longer.
const commentLengthMax = 128;

/**
 * The text of nft commands for the proxy's table of one family (or another one of the same make), in order. Neighbouring elements of the same set go into one
 * command. Everything put in is checked before: names are DNS labels, addresses canonical.
 */
export class TableText {
  readonly #table: string;
  readonly #family: Family;
  readonly #lines: string[] = [];
  #length = 0;
  #open: { verb: "add" | "delete"; set: string; elements: string[] } | undefined;

  constructor(family: Family, table = tableName) {
    this.#family = family;
    this.#table = `${familyWords(family).ip} ${table}`;
  }

  addTable(): void {
    this.#line(`add table ${this.#table}`);
  }

  /** Makes the table, which is there, anew and empty. */
  replaceTable(): void {
    this.#line(`delete table ${this.#table}`);
    this.addTable();
  }

  /** `body`: `{ type … ; }`. */
  addSet(kind: "set" | "map", name: string, body: string): void {
    this.#line(`add ${kind} ${this.#table} ${name} ${body}`);
  }

  /** The sets and maps that all services share. */
  addSharedSets(): void {
    for (const [name, { kind, type }] of Object.entries(sharedSets(this.#family))) {
      this.addSet(kind, name, `{ type ${type} ; }`);
    }
  }

  /** A set of client addresses that are forgotten after `seconds` without a new connection. */
  addAffinitySet(name: string, seconds: number): void {
    const { addressType } = familyWords(this.#family);
    this.addSet("set", name, `{ type ${addressType} ; flags dynamic,timeout ; timeout ${seconds}s ; }`);
  }

  /** The chain and the map that plain services with `count` endpoints share. */
  addCount(count: number): void {
    const { map, rule } = sharedEndpoints(this.#family, count);
    this.addSet("map", `endpoints-${count}`, map);
    this.addChain(countChain(count));
    this.writeChain(countChain(count), [rule]);
  }

  flushSet(kind: "set" | "map", name: string): void {
    this.#line(`flush ${kind} ${this.#table} ${name}`);
  }

  deleteSet(kind: "set" | "map", name: string): void {
    this.#line(`delete ${kind} ${this.#table} ${name}`);
  }

  /** Does nothing if it is there. `hook`: `type … hook … priority … ;` for base chains. */
  addChain(name: string, hook?: string): void {
    this.#line(`add chain ${this.#table} ${name}${hook === undefined ? "" : ` { ${hook} }`}`);
  }

  /** Replaces the rules of a chain that is there. */
  writeChain(name: string, rules: readonly string[]): void {
    this.flushChain(name);
    for (const rule of rules) this.#line(`add rule ${this.#table} ${name} ${rule}`);
  }

  flushChain(name: string): void {
    this.#line(`flush chain ${this.#table} ${name}`);
  }

  deleteChain(name: string): void {
    this.#line(`delete chain ${this.#table} ${name}`);
  }

  deleteRule(chain: string, handle: number): void {
    this.#line(`delete rule ${this.#table} ${chain} handle ${handle}`);
  }

  /** `value`: "" in a set. */
  addElement(set: string, key: string, value: string, comment = ""): void {
    const about = comment === "" ? "" : ` comment "${comment.slice(0, commentLengthMax)}"`;
    this.#element("add", set, `${key}${about}${value === "" ? "" : ` : ${value}`}`);
  }

  deleteElement(set: string, key: string): void {
    this.#element("delete", set, key);
  }

  /** Characters so far, about. */
  get length(): number {
    return this.#length;
  }

  /** Texts of about `length` characters of the commands so far, in order. What is left of them, which is less, stays here. */
  takeSteps(length: number): string[] {
    this.#close();
    const steps: string[] = [];
    let step = "";
    for (const line of this.#lines) {
      step += line;
      if (step.length < length) continue;
      steps.push(step);
      step = "";
    }
    this.#lines.length = 0;
    if (step !== "") this.#lines.push(step);
    this.#length = step.length;
    return steps;
  }

  toString(): string {
    this.#close();
    return this.#lines.join("");
  }

  #element(verb: "add" | "delete", set: string, element: string): void {
    this.#length += element.length;
    const open = this.#open;
    if (open?.verb === verb && open.set === set && open.elements.length < elementsPerCommandMax) {
      open.elements.push(element);
      return;
    }
    this.#close();
    this.#open = { verb, set, elements: [element] };
  }

  #line(line: string): void {
    this.#close();
    this.#length += line.length;
    this.#lines.push(`${line}\n`);
  }

  #close(): void {
    if (this.#open === undefined) return;
    const { verb, set, elements } = this.#open;
    this.#lines.push(`${verb} element ${this.#table} ${set} { ${elements.join(", ")} }\n`);
    this.#open = undefined;
  }
}
