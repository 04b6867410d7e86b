/**
 * Cells whose end the notebook has not seen. Each bears a mark in its metadata, in the file too, so
 * that whoever opens the notebook later knows what to ask the kernel for.
 */
import { CodeCell, ICodeCellModel } from '@jupyterlab/cells';
import { NotebookPanel } from '@jupyterlab/notebook';
import { Kernel, KernelMessage } from '@jupyterlab/services';
import { Throttler } from '@lumino/polling';

import { IOutputsReply, isCallboard, requestOutputs } from './kernel';

/** The key of a mark in a cell's metadata. */
const MARK = 'callboard';

/** How often marks are saved at most. Cells that end sooner are never saved as unfinished. */
const SAVE_EVERY_MS = 1_000;

/** Pause before a kernel is asked again that could not answer: one that just changes its executor. */
const ASK_AGAIN_AFTER_MS = 3_000;

/** Which request runs a cell, on which kernel. */
interface IMark {
  kernel: string;
  msg_id: string;
}

/** Marks the unfinished cells of one notebook, and fetches what they put out meanwhile. */
export class UnfinishedCells {
  constructor(panel: NotebookPanel) {
    this._panel = panel;
    const { context, sessionContext } = panel;
    void Promise.all([context.ready, sessionContext.ready]).then(() => {
      if (panel.isDisposed) {
        return;
      }
      this._saved = new Set(this._marked().keys());
      this._owed = new Set(this._saved);
      this._attach(sessionContext.session?.kernel ?? null);
      sessionContext.kernelChanged.connect((_, { newValue }) =>
        this._attach(newValue ?? null)
      );
    });
    panel.disposed.connect(() => this._saveSoon.dispose());
  }

  /** Follows another kernel. Signals of the one before go with its connection. */
  private _attach(kernel: Kernel.IKernelConnection | null): void {
    if (!kernel) {
      return;
    }
    const ours = isCallboard(kernel);
    kernel.anyMessage.connect(async (_, { direction, msg }) => {
      if (direction === 'send' && isExecuteRequest(msg) && (await ours)) {
        this._mark(kernel, msg);
      }
    });
    kernel.iopubMessage.connect((_, msg) => {
      if (KernelMessage.isStatusMsg(msg) && msg.content.execution_state === 'idle') {
        this._clear(msg.parent_header.msg_id);
      }
    });
    kernel.connectionStatusChanged.connect((_, status) => {
      if (status === 'connected') {
        this._resume(kernel);
      } else {
        // What is put out from here on does not arrive.
        this._owed = new Set([...this._owed, ...this._marked().keys()]);
      }
    });
    if (kernel.connectionStatus === 'connected') {
      this._resume(kernel);
    }
  }

  /** Notes which request runs a cell. */
  private _mark(
    kernel: Kernel.IKernelConnection,
    request: KernelMessage.IExecuteRequestMsg
  ): void {
    const cell = this._cells().find(
      cell => cell.model.id === request.metadata.cellId
    );
    const mark: IMark = { kernel: kernel.id, msg_id: request.header.msg_id };
    cell?.model.setMetadata(MARK, mark);
    void this._saveSoon.invoke();
  }

  /** Forgets a request that has ended. Its outputs and the lack of a mark are saved together. */
  private _clear(msgId: string): void {
    const cell = this._marked().get(msgId);
    if (cell) {
      cell.model.deleteMetadata(MARK);
      void this._saveSoon.invoke();
    }
  }

  /** Fetches the outputs that could not arrive before there was this connection to the kernel. */
  private _resume(kernel: Kernel.IKernelConnection): void {
    if (this._panel.isDisposed || kernel.isDisposed) {
      return;
    }
    // A kernel that a mark names is Callboard's. It need not be asked, which might wait for the cell.
    for (const [msgId, cell] of this._marked()) {
      if (markOf(cell)?.kernel === kernel.id && this._owed.delete(msgId)) {
        void this._replay(kernel, cell, msgId);
      }
    }
  }

  /** Shows a cell's outputs from the first one on, and goes on with those to come. */
  private async _replay(
    kernel: Kernel.IKernelConnection,
    cell: CodeCell,
    msgId: string
  ): Promise<void> {
    const model: ICodeCellModel = cell.model;
    const before = model.outputs.toJSON();
    const future = requestOutputs(kernel, msgId);
    model.trusted = true;
    model.executionState = 'running';
    cell.outputArea.future = future;
    try {
      const reply = (await future.done)?.content as unknown as IOutputsReply;
      if (reply.status !== 'ok' || reply.cell === 'unknown') {
        model.outputs.fromJSON(before);
      }
      if (reply.status === 'ok') {
        model.executionCount = reply.execution_count;
        this._clear(msgId);
      } else {
        this._owed.add(msgId);
        setTimeout(() => this._resume(kernel), ASK_AGAIN_AFTER_MS);
      }
    } catch {
      // The connection was lost again, or the cell is run anew.
    }
    if (!cell.isDisposed && cell.outputArea.future === future) {
      model.executionState = 'idle';
    }
  }

  private async _save(): Promise<void> {
    const { context } = this._panel;
    const marked = new Set(this._marked().keys());
    const same =
      marked.size === this._saved.size &&
      [...marked].every(msgId => this._saved.has(msgId));
    if (!same && context.contentsModel?.writable) {
      this._saved = marked;
      await context.save();
    }
  }

  private _cells(): CodeCell[] {
    return this._panel.content.widgets.filter(cell => cell instanceof CodeCell);
  }

  /** The marked cells by the ids of their requests. */
  private _marked(): Map<string, CodeCell> {
    return new Map(
      this._cells().flatMap(cell => {
        const mark = markOf(cell);
        return mark ? [[mark.msg_id, cell] as const] : [];
      })
    );
  }

  private readonly _panel: NotebookPanel;
  /** Requests whose outputs have to be fetched once their kernel is connected. */
  private _owed = new Set<string>();
  /** Requests that the file on disk knows as unfinished. */
  private _saved = new Set<string>();
  private readonly _saveSoon = new Throttler(() => this._save(), {
    limit: SAVE_EVERY_MS,
    edge: 'trailing'
  });
}

function markOf(cell: CodeCell): IMark | undefined {
  return cell.model.getMetadata(MARK) as IMark | undefined;
}

function isExecuteRequest(
  msg: KernelMessage.IMessage
): msg is KernelMessage.IExecuteRequestMsg {
  return msg.header.msg_type === 'execute_request';
}
