import {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { INotebookTracker } from '@jupyterlab/notebook';
import { IStatusBar } from '@jupyterlab/statusbar';

import { keepQuestionsOutOfSight } from './kernel';
import { StatusItem } from './status';
import { UnfinishedCells } from './unfinished';

/** Keeps the outputs of cells that ran while nobody looked. */
const unfinished: JupyterFrontEndPlugin<void> = {
  id: 'callboard:unfinished',
  description: 'Keeps the outputs of cells that ran while nobody looked.',
  autoStart: true,
  requires: [INotebookTracker],
  activate: (_: JupyterFrontEnd, tracker: INotebookTracker) => {
    tracker.widgetAdded.connect((_, panel) => {
      new UnfinishedCells(panel);
    });
  }
};

/** Shows what the kernel survives. */
const status: JupyterFrontEndPlugin<void> = {
  id: 'callboard:status',
  description: 'Shows in the status bar what the kernel survives.',
  autoStart: true,
  requires: [INotebookTracker, IStatusBar],
  activate: (
    _: JupyterFrontEnd,
    tracker: INotebookTracker,
    statusBar: IStatusBar
  ) => {
    keepQuestionsOutOfSight();
    const item = new StatusItem(tracker);
    statusBar.registerStatusItem('callboard:status', {
      item,
      align: 'left',
      rank: 4,
      isActive: () => item.isActive,
      activeStateChanged: item.activeChanged
    });
  }
};

export default [unfinished, status];
